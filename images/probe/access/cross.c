/* cross: one load of 16 bytes, 8 of them in the page before. */
#include "../probe.h"

/* As touch_vector in vector.c. */
void touch_cross(volatile unsigned char *from, unsigned char *copy);
__asm__(".text\n"
	".type touch_cross, @function\n"
	"touch_cross:\n"
	"	movdqu (%rdi), %xmm0\n"
	"	movdqu %xmm0, (%rsi)\n"
	"	ret\n"
	".size touch_cross, .-touch_cross\n");

static enum touched cross(const struct place *place, unsigned int *value)
{
	volatile unsigned char *from = across(place);
	unsigned char copy[ACROSS];

	touch_cross(from, copy);
	*value = copy[place->byte - from];
	return TOUCHED_VALUE;
}

ACCESS(cross, .touch = cross, .rip = touch_cross);
