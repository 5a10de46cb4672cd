/* movs: one REP MOVS that begins in the page before. */
#include "../probe.h"

/*
 * rep movsb copies rcx bytes from rsi to rdi (System V ABI: arguments in rdi, rsi, rdx, rcx), so
 * that nothing need be moved first.
 */
void touch_movs(unsigned char *copy, volatile unsigned char *from, long unused, long count);
__asm__(".text\n"
	".type touch_movs, @function\n"
	"touch_movs:\n"
	"	rep movsb\n"
	"	ret\n"
	".size touch_movs, .-touch_movs\n");

static enum touched movs(const struct place *place, unsigned int *value)
{
	volatile unsigned char *from = across(place);
	unsigned char copy[ACROSS];

	touch_movs(copy, from, 0, sizeof(copy));
	*value = copy[place->byte - from];
	return TOUCHED_VALUE;
}

ACCESS(movs, .touch = movs, .rip = touch_movs);
