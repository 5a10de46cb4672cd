/* load: one load instruction. */
#include "../probe.h"

/*
 * In assembly so that it is one instruction with a known address that follows the function's label
 * at once (System V ABI: argument in rdi, result in eax).
 */
unsigned int touch_load(volatile unsigned char *byte);
__asm__(".text\n"
	".type touch_load, @function\n"
	"touch_load:\n"
	"	movzbl (%rdi), %eax\n"
	"	ret\n"
	".size touch_load, .-touch_load\n");

static enum touched load(const struct place *place, unsigned int *value)
{
	*value = touch_load(place->byte);
	return TOUCHED_VALUE;
}

ACCESS(load, .touch = load, .rip = touch_load);
