/*
 * storm: a load, amid loads of the same page by tasks that run all the time from the first touch on.
 *
 * So a fault comes while every vCPU accesses the page, or all of them find it missing at once. The
 * others are processes of their own: what they are told ends them, and is nobody's business. They
 * load by the same instruction, so a fault that any of them takes first is one of this access. Which
 * bytes they load, and when they let others run, follows from --seed.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "../probe.h"

enum { OTHERS = 4, BURST = 512 /* loads, on average, until others may run */ };

/* In memory that all of them share: what they load from. */
static volatile unsigned char *volatile *page_of_all;

unsigned int touch_storm(volatile unsigned char *byte);
__asm__(".text\n"
	".type touch_storm, @function\n"
	"touch_storm:\n"
	"	movzbl (%rdi), %eax\n"
	"	ret\n"
	".size touch_storm, .-touch_storm\n");

/* Marsaglia's xorshift, with shifts of 13, 7 and 17: any state but 0. */
static unsigned long next_of(unsigned long state)
{
	state ^= state << 13;
	state ^= state >> 7;
	return state ^ state << 17;
}

static void load_for_ever(unsigned long state, pid_t parent)
{
	signal(SIGBUS, SIG_DFL);
	signal(SIGSEGV, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0); /* it has ended before it could be asked to take us along */
	for (;;) {
		state = next_of(state);
		touch_storm(*page_of_all + state % PAGE);
		if (!(state >> 20 & (BURST - 1)))
			sched_yield();
	}
}

/* Returns 0 if they could not be started. */
static int start_others(const struct place *place)
{
	pid_t parent = getpid(), other;

	page_of_all = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (page_of_all == MAP_FAILED)
		return 0;
	*page_of_all = place->byte - (unsigned long)place->byte % PAGE;
	for (int number = 0; number < OTHERS; number++) {
		other = fork();
		if (other < 0)
			return 0;
		if (!other)
			load_for_ever(probe_seed * OTHERS + number + 1, parent);
	}
	return 1;
}

static enum touched storm(const struct place *place, unsigned int *value)
{
	int begins = !page_of_all;

	if (!begins)
		*page_of_all = place->byte - (unsigned long)place->byte % PAGE;
	*value = touch_storm(place->byte); /* the first one, by which the host's tracer is checked */
	if (begins && !start_others(place))
		return TOUCHED_ERRNO;
	return TOUCHED_VALUE;
}

ACCESS(storm, .touch = storm, .rip = touch_storm);
