/* futex: the kernel changes a futex in the page for the task. */
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../probe.h"

/*
 * FUTEX_WAKE_OP stores into the second futex, and wakes whoever waits for the first one if a
 * comparison holds (futex(2)); nobody does. As a private futex its key is its address, so that
 * nothing but the store touches the page.
 */
static enum touched futex(const struct place *place, unsigned int *value)
{
	static unsigned int other;
	int what = FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG;
	int store = FUTEX_OP(FUTEX_OP_SET, *value, FUTEX_OP_CMP_EQ, 0);
	long woken = syscall(SYS_futex, &other, what, 1, 1L, place->byte, store);

	return woken < 0 ? TOUCHED_ERRNO : TOUCHED_VALUE;
}

ACCESS(futex, .writes = 1, .touch = futex);
