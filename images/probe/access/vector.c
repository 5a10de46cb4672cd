/* vector: one load of 16 bytes. */
#include "../probe.h"

/* As touch_load in load.c; the 16 bytes go on into a buffer of the task's (rsi). */
void touch_vector(volatile unsigned char *byte, unsigned char *copy);
__asm__(".text\n"
	".type touch_vector, @function\n"
	"touch_vector:\n"
	"	movdqu (%rdi), %xmm0\n"
	"	movdqu %xmm0, (%rsi)\n"
	"	ret\n"
	".size touch_vector, .-touch_vector\n");

static enum touched vector(const struct place *place, unsigned int *value)
{
	unsigned char copy[16];

	touch_vector(place->byte, copy);
	*value = copy[0];
	return TOUCHED_VALUE;
}

ACCESS(vector, .touch = vector, .rip = touch_vector);
