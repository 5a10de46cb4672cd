/* rmw: one locked instruction that loads, compares and stores. */
#include "../probe.h"

/*
 * lock cmpxchg stores only if al holds what the byte is, and else loads that into al: then it is
 * done again, at the same address (System V ABI: arguments in rdi, esi).
 */
void touch_rmw(volatile unsigned char *byte, unsigned int value);
__asm__(".text\n"
	".type touch_rmw, @function\n"
	"touch_rmw:\n"
	"	lock cmpxchgb %sil, (%rdi)\n"
	"	jne touch_rmw\n"
	"	ret\n"
	".size touch_rmw, .-touch_rmw\n");

static enum touched rmw(const struct place *place, unsigned int *value)
{
	touch_rmw(place->byte, *value);
	return TOUCHED_VALUE;
}

ACCESS(rmw, .writes = 1, .touch = rmw, .rip = touch_rmw);
