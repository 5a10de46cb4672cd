/*
 * probe: the guest task that touches a page.
 *
 *   probe --file PATH [--start N] --length BYTES --offset N [--first N] --access NAME [--value BYTE]
 *         [--seed N] [--task pinned|migrating]
 *   probe --wait
 *
 * With --wait it takes these options from the first line of its standard input, without quotes: so
 * that a snapshot can hold one that is loaded and runs.
 *
 * It maps BYTES of PATH (shared) from N on, touches the byte at --first of the mapping once, waits
 * for a line "go" on its standard input, touches the byte at --offset, by exactly one instruction or
 * one system call, and says what became of it. --first is --offset unless it is given. No other
 * page of the mapping is touched. With --task it stays on the last vCPU, or another process moves it
 * from one vCPU to the next again and again, from before it maps the file.
 *
 * Each line of its output is a JSON object with a "step"; addresses are text in hexadecimal:
 *
 *   waiting      for its options
 *   started      pid
 *   mapped       mapping, length
 *   first-touch  value: the byte read; a first access that writes leaves the complement of --value,
 *                so that the file tells whether the second one arrived
 *   armed        address: of the byte, rip: of the instruction that will touch it, or 0x0 if that is
 *                one of the kernel's
 *   touching
 *   exit         reason, more: of access "nested", KVM_RUN has returned without the byte, and a failure
 *                follows (KVM_EXIT_*; of KVM_EXIT_INTERNAL_ERROR which one)
 *   outcome      kind "value": value; kind "errno": errno; kind "end": the file ends before the byte;
 *                kind "hole": the kernel has left the page out; kind "signal": signal, code, address, rip
 *   done
 *   failed       call, errno (or signal, if the first touch raised one); the exit code is 2
 *
 * A wrong command line gives exit code 64 (EX_USAGE).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "probe.h"

enum { EXIT_FAILED = 2, EXIT_BAD_USAGE = 64, MOST_WORDS = 32 };

/* All that the files in access/ have registered; the linker makes the two names. */
extern const struct access __start_accesses[], __stop_accesses[];

struct request {
	const char *file;
	unsigned long start;
	unsigned long offset;
	unsigned long first;
	unsigned long length;
	const struct access *access;
	unsigned int value;
	const char *task;
};

unsigned long probe_seed;
static sigjmp_buf after_signal;
static struct {
	int number;
	int code;
	unsigned long address;
	unsigned long rip;
} caught;

static void on_signal(int number, siginfo_t *info, void *context)
{
	const ucontext_t *state = context;

	caught.number = number;
	caught.code = info->si_code;
	caught.address = (unsigned long)info->si_addr;
	caught.rip = (unsigned long)state->uc_mcontext.gregs[REG_RIP];
	siglongjmp(after_signal, 1);
}

static void catch_signals(void)
{
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };

	sigemptyset(&action.sa_mask);
	sigaction(SIGBUS, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
}

static int failed(const char *call)
{
	printf("{\"step\":\"failed\",\"call\":\"%s\",\"errno\":%d}\n", call, errno);
	return EXIT_FAILED;
}

static const struct access *find_access(const char *name)
{
	const struct access *each;

	for (each = __start_accesses; each < __stop_accesses; each++)
		if (!strcmp(each->name, name))
			return each;
	return NULL;
}

static int parse_number(const char *text, unsigned long limit, unsigned long *number)
{
	char *end;

	errno = 0;
	*number = strtoul(text, &end, 0);
	return *text >= '0' && *text <= '9' && !*end && !errno && *number <= limit;
}

static int parse(int count, char **words, struct request *request)
{
	static const struct option options[] = {
		{ "file", required_argument, NULL, 'f' },
		{ "start", required_argument, NULL, 's' },
		{ "first", required_argument, NULL, '1' },
		{ "offset", required_argument, NULL, 'o' },
		{ "length", required_argument, NULL, 'l' },
		{ "access", required_argument, NULL, 'a' },
		{ "value", required_argument, NULL, 'v' },
		{ "seed", required_argument, NULL, 'r' },
		{ "task", required_argument, NULL, 't' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned long value = 0;
	int option, fine = 1;

	request->first = ~0UL;
	request->task = "";

	while ((option = getopt_long(count, words, "", options, NULL)) != -1) {
		switch (option) {
		case 'f':
			request->file = optarg;
			break;
		case 's':
			fine &= parse_number(optarg, ~0UL >> 1, &request->start);
			break;
		case '1':
			fine &= parse_number(optarg, ~0UL, &request->first);
			break;
		case 'o':
			fine &= parse_number(optarg, ~0UL, &request->offset);
			break;
		case 'l':
			fine &= parse_number(optarg, ~0UL, &request->length);
			break;
		case 'a':
			request->access = find_access(optarg);
			break;
		case 'v':
			fine &= parse_number(optarg, 255, &value);
			break;
		case 'r':
			fine &= parse_number(optarg, ~0U, &probe_seed);
			break;
		case 't':
			request->task = optarg;
			fine &= !strcmp(optarg, "pinned") || !strcmp(optarg, "migrating");
			break;
		default:
			return 0;
		}
	}
	request->value = value;
	if (request->first == ~0UL)
		request->first = request->offset;
	return fine && request->access && request->file && request->offset < request->length &&
	       request->first < request->length && optind == count;
}

static int told_to_go(void)
{
	char line[16];

	return fgets(line, sizeof(line), stdin) && !strcmp(line, "go\n");
}

/* Returns the probe's exit code. */
static int tell_outcome(const struct request *request, const struct place *place)
{
	unsigned int value = request->value;

	switch (request->access->touch(place, &value)) {
	case TOUCHED_VALUE:
		printf("{\"step\":\"outcome\",\"kind\":\"value\",\"value\":%u}\n", value);
		break;
	case TOUCHED_ERRNO:
		printf("{\"step\":\"outcome\",\"kind\":\"errno\",\"errno\":%d}\n", errno);
		break;
	case TOUCHED_END:
		printf("{\"step\":\"outcome\",\"kind\":\"end\"}\n");
		break;
	case TOUCHED_HOLE:
		printf("{\"step\":\"outcome\",\"kind\":\"hole\"}\n");
		break;
	case TOUCHED_NOT:
		return failed("touch");
	}
	printf("{\"step\":\"done\"}\n");
	return 0;
}

static int prepare(const struct request *request, const struct place *place)
{
	return request->access->prepare ? request->access->prepare(place) : 0;
}

/* Touch the page once, so that it is mapped; returns 0, or the probe's exit code. */
static int first_touch(const struct request *request, const struct place *place)
{
	unsigned int value = ~request->value & 0xff;

	if (sigsetjmp(after_signal, 1)) {
		printf("{\"step\":\"failed\",\"call\":\"first-touch\",\"signal\":%d}\n",
		       caught.number);
		return EXIT_FAILED;
	}
	errno = 0;
	if (prepare(request, place))
		return failed("prepare");
	if (request->access->touch(place, &value) != TOUCHED_VALUE)
		return failed("first-touch");
	printf("{\"step\":\"first-touch\",\"value\":%u}\n", value);
	return 0;
}

static int run(const struct request *request)
{
	struct place place, first;
	unsigned char *mapping;
	int file, code;

	printf("{\"step\":\"started\",\"pid\":%d}\n", getpid());
	if (place_task(request->task))
		return failed("place_task");
	file = open(request->file, O_RDWR | O_CLOEXEC);
	if (file < 0)
		return failed("open");
	mapping = mmap(NULL, request->length, PROT_READ | PROT_WRITE, MAP_SHARED, file,
		       request->start);
	if (mapping == MAP_FAILED)
		return failed("mmap");
	printf("{\"step\":\"mapped\",\"mapping\":\"%p\",\"length\":%lu}\n", mapping,
	       request->length);

	catch_signals();
	first = (struct place){ mapping + request->first, file, request->start + request->first };
	code = first_touch(request, &first);
	if (code)
		return code;
	place = (struct place){ mapping + request->offset, file, request->start + request->offset };
	if (prepare(request, &place))
		return failed("prepare");
	printf("{\"step\":\"armed\",\"address\":\"%p\",\"rip\":\"0x%lx\"}\n", (void *)place.byte,
	       (unsigned long)request->access->rip);
	fflush(stdout);

	errno = 0;
	if (!told_to_go())
		return failed("read");
	printf("{\"step\":\"touching\"}\n");
	fflush(stdout); /* told before it is done: the touch may not come back */
	if (!sigsetjmp(after_signal, 1))
		return tell_outcome(request, &place);
	printf("{\"step\":\"outcome\",\"kind\":\"signal\",\"signal\":%d,\"code\":%d,"
	       "\"address\":\"0x%lx\",\"rip\":\"0x%lx\"}\n",
	       caught.number, caught.code, caught.address, caught.rip);
	printf("{\"step\":\"done\"}\n");
	return 0;
}

/* Read options from standard input, as words between blanks; returns how many words there are. */
static int read_words(char *line, int size, char **words, int most)
{
	int count = 1;
	char *word;

	if (!fgets(line, size, stdin))
		return count;
	for (word = strtok(line, " \n"); word && count < most; word = strtok(NULL, " \n"))
		words[count++] = word;
	return count;
}

int main(int count, char **words)
{
	struct request request = { 0 };
	char line[1024], *read[MOST_WORDS + 1] = { words[0] };

	if (count == 2 && !strcmp(words[1], "--wait")) {
		printf("{\"step\":\"waiting\"}\n");
		fflush(stdout);
		words = read;
		count = read_words(line, sizeof(line), words, MOST_WORDS);
	}
	if (!parse(count, words, &request)) {
		fprintf(stderr, "usage: probe --wait | --file PATH [--start N] --length BYTES --offset N "
				"[--first N] --access NAME [--value BYTE] [--seed N] "
				"[--task pinned|migrating]; offsets are less than BYTES; "
				"accesses:");
		for (const struct access *each = __start_accesses; each < __stop_accesses; each++)
			fprintf(stderr, " %s", each->name);
		fprintf(stderr, "\n");
		return EXIT_BAD_USAGE;
	}
	return run(&request);
}
