/* Where the task runs: on one vCPU, or moved from one to the next all the time. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "probe.h"

enum { PAUSE = 2000000, ROUNDS = 3 }; /* nanoseconds between moves; moves to see before the task goes on */

static int put_on(pid_t task, int vcpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(vcpu, &set);
	return sched_setaffinity(task, sizeof(set), &set);
}

/* Move a task to the next vCPU again and again, until it ends. */
static void move(pid_t task, int vcpus)
{
	struct timespec pause = { .tv_nsec = PAUSE };
	int next;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (next = 0; getppid() == task && !put_on(task, next % vcpus); next++)
		nanosleep(&pause, NULL);
	_exit(0);
}

/* Wait until this task has been on the first vCPU and on the second, in turn. */
static void see_moves(void)
{
	int seen = 0;

	while (seen < 2 * ROUNDS)
		if (sched_getcpu() == seen % 2)
			seen++;
}

int place_task(const char *how)
{
	int vcpus = (int)sysconf(_SC_NPROCESSORS_ONLN);
	pid_t task = getpid(), mover;

	if (!*how)
		return 0;
	if (vcpus < 2) {
		errno = ENXIO;
		return -1;
	}
	if (!strcmp(how, "pinned"))
		return put_on(0, vcpus - 1);
	mover = fork();
	if (mover < 0)
		return -1;
	if (!mover) {
		close_range(0, 2, 0); /* whoever reads what the task says waits for its end, not ours */
		move(task, vcpus);
	}
	see_moves();
	return 0;
}
