/* sigframe: the page is the stack of a signal handler, on which the kernel puts a frame. */
#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "../probe.h"

static const struct place *stack;
static unsigned char mark;

/* It runs on the page, so what it leaves at its lowest byte is far from what it uses. */
static void leave_mark(int number)
{
	(void)number;
	*stack->byte = mark;
}

static enum touched sigframe(const struct place *place, unsigned int *value)
{
	struct sigaction action = { .sa_handler = leave_mark, .sa_flags = SA_ONSTACK };
	stack_t page = { .ss_sp = (void *)place->byte, .ss_size = PAGE - (long)place->byte % PAGE };

	stack = place;
	mark = *value;
	sigemptyset(&action.sa_mask);
	if (sigaltstack(&page, NULL) || sigaction(SIGUSR1, &action, NULL) || raise(SIGUSR1))
		return TOUCHED_ERRNO;
	return TOUCHED_VALUE;
}

ACCESS(sigframe, .writes = 1, .touch = sigframe);
