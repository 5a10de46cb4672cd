/* store: one store instruction. */
#include "../probe.h"

/* As touch_load in load.c (System V ABI: arguments in rdi, esi). */
void touch_store(volatile unsigned char *byte, unsigned int value);
__asm__(".text\n"
	".type touch_store, @function\n"
	"touch_store:\n"
	"	movb %sil, (%rdi)\n"
	"	ret\n"
	".size touch_store, .-touch_store\n");

static enum touched store(const struct place *place, unsigned int *value)
{
	touch_store(place->byte, *value);
	return TOUCHED_VALUE;
}

ACCESS(store, .writes = 1, .touch = store, .rip = touch_store);
