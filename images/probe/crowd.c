/*
 * crowd: many guest tasks, some of which touch pages at the same time, while the others are busy.
 *
 *   crowd --file PATH --length BYTES --tasks T --policy fair|rr [--move]
 *
 * It maps BYTES of PATH (shared), loads a byte of each 2 MiB so that all of the file is in the
 * DAX window, and is told by lines on its standard input what to do:
 *
 *   pages P...   one process for each of T tasks. As many as there are pages are touchers, spread
 *                evenly among the others: the first loads a byte of page P1 now and will once
 *                more, and so on. The others will run in a loop.
 *   go           all tasks become runnable at once, and every toucher loads its byte again
 *
 * Policy "fair" leaves the choice of the next task to the kernel's default scheduler, and the busy
 * ones never give up the CPU by themselves. With "rr" (SCHED_RR) a task that wakes up has to wait
 * for all others; the busy ones let the next one run after a short while, as tasks do that talk to
 * each other. With --move a further process sends each toucher to another CPU again and again,
 * whether it sleeps or not.
 *
 * Every task keeps TASK_MARK + its number in the register r15 while it is in user space, so that
 * whoever looks at a vCPU's registers from outside can tell which task is on it.
 *
 * Each line of its output is a JSON object with a "step"; addresses are text in hexadecimal:
 *
 *   mapped     mapping, length
 *   task       number, pid, and of a toucher also page, address
 *   armed      rip: of the touching instruction; mark: what r15 holds for task 0
 *   touching
 *   outcome    touched, signalled: touchers whose load worked, and that were told by a signal
 *   failed     call, errno; the exit code is 2
 *
 * A wrong command line gives exit code 64 (EX_USAGE).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { EXIT_FAILED = 2, EXIT_BAD_USAGE = 64 };
enum { MAX_TASKS = 256, PAGE = 4096, RANGE = 2 << 20 };
enum { PRIORITY_TASK = 10, PRIORITY_MOVER = 40, PRIORITY_MAIN = 50 };

#define TASK_MARK 0x7a5c0000UL
#define BUSY_TURNS 20000 /* of the loop before a busy task under "rr" lets others run */
#define MOVE_EVERY 200000 /* nanoseconds between two rounds of moves */

register unsigned long self __asm__("r15");

/* One instruction at a known address, right at the label (System V ABI: argument in rdi). */
unsigned int crowd_touch(const volatile unsigned char *byte);
__asm__(".text\n"
	".type crowd_touch, @function\n"
	"crowd_touch:\n"
	"	movzbl (%rdi), %eax\n"
	"	ret\n"
	".size crowd_touch, .-crowd_touch\n");

struct request {
	const char *file;
	unsigned long length;
	unsigned long tasks;
	int round_robin;
	int move;
};

/* In memory that all processes share. */
struct board {
	unsigned int ready; /* tasks that wait for the word */
	unsigned int go; /* futex */
};

static struct board *board;
static const unsigned char *mapping;
static unsigned long pages[MAX_TASKS]; /* of the touchers, in order */
static unsigned long touchers;
static pid_t pids[MAX_TASKS];

static int failed(const char *call)
{
	printf("{\"step\":\"failed\",\"call\":\"%s\",\"errno\":%d}\n", call, errno);
	return EXIT_FAILED;
}

static int become_urgent(int policy, int priority)
{
	struct sched_param param = { .sched_priority = priority };

	return sched_setscheduler(0, policy, &param);
}

/* How many of the tasks below `number` are touchers; they are spread evenly. */
static unsigned long touchers_below(unsigned long number, unsigned long tasks)
{
	return number * touchers / tasks;
}

static void wait_for_go(void)
{
	__atomic_fetch_add(&board->ready, 1, __ATOMIC_SEQ_CST);
	while (!__atomic_load_n(&board->go, __ATOMIC_SEQ_CST))
		syscall(SYS_futex, &board->go, FUTEX_WAIT, 0, NULL, NULL, 0);
}

__attribute__((noreturn)) static void be_busy(int round_robin)
{
	for (;;) {
		for (int turn = 0; turn < BUSY_TURNS; turn++)
			__asm__ volatile("" ::: "memory");
		if (round_robin)
			sched_yield();
	}
}

/* The life of one task; it ends only if it is a toucher whose second load worked. */
static int be_a_task(const struct request *request, unsigned long number)
{
	unsigned long turn = touchers_below(number, request->tasks);
	int touches = touchers_below(number + 1, request->tasks) > turn;
	const unsigned char *byte = mapping + (touches ? pages[turn] * PAGE : 0);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	self = TASK_MARK + number;
	if (touches)
		crowd_touch(byte);
	if (request->round_robin && become_urgent(SCHED_RR, PRIORITY_TASK))
		return EXIT_FAILED;
	wait_for_go();
	if (!touches)
		be_busy(request->round_robin);
	crowd_touch(byte);
	return 0;
}

static void move_touchers(const struct request *request)
{
	struct timespec pause = { .tv_nsec = MOVE_EVERY };
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	cpu_set_t set;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	become_urgent(SCHED_FIFO, PRIORITY_MOVER);
	wait_for_go();
	for (unsigned long round = 0;; round++) {
		for (unsigned long number = 0; number < request->tasks; number++) {
			if (touchers_below(number + 1, request->tasks) ==
			    touchers_below(number, request->tasks))
				continue;
			CPU_ZERO(&set);
			CPU_SET((number + round) % cpus, &set);
			sched_setaffinity(pids[number], sizeof(set), &set);
		}
		nanosleep(&pause, NULL);
	}
}

static int told_to_go(void)
{
	char line[16];

	return fgets(line, sizeof(line), stdin) && !strcmp(line, "go\n");
}

static int read_pages(const struct request *request)
{
	static char line[MAX_TASKS * 8 + 16];
	char *rest, *word;

	if (!fgets(line, sizeof(line), stdin) || strncmp(line, "pages", 5))
		return 0;
	for (word = strtok_r(line + 5, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
		if (touchers == request->tasks)
			return 0;
		pages[touchers] = strtoul(word, NULL, 10);
		if ((pages[touchers++] + 1) * PAGE > request->length)
			return 0;
	}
	return touchers > 0;
}

static void tell_tasks(const struct request *request)
{
	for (unsigned long number = 0; number < request->tasks; number++) {
		unsigned long turn = touchers_below(number, request->tasks);

		printf("{\"step\":\"task\",\"number\":%lu,\"pid\":%d", number, pids[number]);
		if (touchers_below(number + 1, request->tasks) > turn)
			printf(",\"page\":%lu,\"address\":\"%p\"", pages[turn],
			       (void *)(mapping + pages[turn] * PAGE));
		printf("}\n");
	}
}

/* Wait for every toucher to end, and tell how they did. */
static void tell_outcome(void)
{
	unsigned long touched = 0, signalled = 0;
	int status;

	while (touched + signalled < touchers && wait(&status) > 0) {
		touched += WIFEXITED(status) && !WEXITSTATUS(status);
		signalled += WIFSIGNALED(status);
	}
	printf("{\"step\":\"outcome\",\"touched\":%lu,\"signalled\":%lu}\n", touched, signalled);
}

static int start_tasks(const struct request *request)
{
	unsigned int wanted = request->tasks + request->move;
	struct timespec pause = { .tv_nsec = 1000000 };
	pid_t pid;

	for (unsigned long number = 0; number < wanted; number++) {
		pid = fork();
		if (pid < 0)
			return failed("fork");
		if (!pid && number == request->tasks)
			move_touchers(request);
		if (!pid)
			_exit(be_a_task(request, number));
		if (number < request->tasks)
			pids[number] = pid;
	}
	while (__atomic_load_n(&board->ready, __ATOMIC_SEQ_CST) < wanted) {
		errno = 0;
		if (waitpid(-1, NULL, WNOHANG) != 0)
			return failed("task");
		nanosleep(&pause, NULL);
	}
	return 0;
}

static int run(const struct request *request)
{
	int code, file = open(request->file, O_RDWR | O_CLOEXEC);

	if (file < 0)
		return failed("open");
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
		     0);
	mapping = mmap(NULL, request->length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (board == MAP_FAILED || mapping == MAP_FAILED)
		return failed("mmap");
	for (unsigned long at = 0; at < request->length; at += RANGE)
		crowd_touch(mapping + at);
	printf("{\"step\":\"mapped\",\"mapping\":\"%p\",\"length\":%lu}\n", (void *)mapping,
	       request->length);

	errno = 0;
	if (!read_pages(request))
		return failed("pages");
	code = start_tasks(request);
	if (code)
		return code;
	tell_tasks(request);
	/* Nobody may run before all are awake. */
	if (become_urgent(SCHED_FIFO, PRIORITY_MAIN))
		return failed("sched_setscheduler");
	printf("{\"step\":\"armed\",\"rip\":\"%p\",\"mark\":\"0x%lx\"}\n", (void *)crowd_touch,
	       TASK_MARK);

	if (!told_to_go())
		return failed("read");
	printf("{\"step\":\"touching\"}\n");
	__atomic_store_n(&board->go, 1, __ATOMIC_SEQ_CST);
	syscall(SYS_futex, &board->go, FUTEX_WAKE, MAX_TASKS + 1, NULL, NULL, 0);
	tell_outcome();
	return 0;
}

static int parse_number(const char *text, unsigned long limit, unsigned long *number)
{
	char *end;

	errno = 0;
	*number = strtoul(text, &end, 0);
	return *text >= '0' && *text <= '9' && !*end && !errno && *number > 0 && *number <= limit;
}

static int parse(int count, char **words, struct request *request)
{
	static const struct option options[] = {
		{ "file", required_argument, NULL, 'f' },
		{ "length", required_argument, NULL, 'l' },
		{ "tasks", required_argument, NULL, 't' },
		{ "policy", required_argument, NULL, 'p' },
		{ "move", no_argument, NULL, 'm' },
		{ NULL, 0, NULL, 0 },
	};
	int option, has_policy = 0, fine = 1;

	while ((option = getopt_long(count, words, "", options, NULL)) != -1) {
		switch (option) {
		case 'f':
			request->file = optarg;
			break;
		case 'l':
			fine &= parse_number(optarg, 1UL << 40, &request->length);
			break;
		case 't':
			fine &= parse_number(optarg, MAX_TASKS, &request->tasks);
			break;
		case 'p':
			request->round_robin = !strcmp(optarg, "rr");
			has_policy = request->round_robin || !strcmp(optarg, "fair");
			break;
		case 'm':
			request->move = 1;
			break;
		default:
			return 0;
		}
	}
	return fine && has_policy && request->file && request->length && request->tasks &&
	       optind == count;
}

int main(int count, char **words)
{
	struct request request = { 0 };

	if (!parse(count, words, &request)) {
		fprintf(stderr, "usage: crowd --file PATH --length BYTES --tasks T "
				"--policy fair|rr [--move]; T is 256 at most\n");
		return EXIT_BAD_USAGE;
	}
	setvbuf(stdout, NULL, _IOLBF, 0); /* a step is told before the next one is taken */
	return run(&request);
}
