/*
 * probe: the guest task that touches a page.
 *
 *   probe --file PATH --offset N --length BYTES --access load|store [--value BYTE]
 *
 * It maps BYTES of PATH (shared), touches the byte at N once so that the page is mapped, waits for
 * a line "go" on its standard input, touches that byte again, by exactly one instruction, and says
 * what became of it. No other page of the mapping is touched.
 *
 * Each line of its output is a JSON object with a "step"; addresses are text in hexadecimal:
 *
 *   started      pid
 *   mapped       mapping, length
 *   first-touch  value: the byte loaded; a first store stores the complement of --value, so that
 *                the file tells whether the second one arrived
 *   armed        address: of the byte, rip: of the instruction that will touch it
 *   touching
 *   outcome      kind "value": value; kind "signal": signal, code, address, rip
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

enum { EXIT_FAILED = 2, EXIT_BAD_USAGE = 64 };

/*
 * The touching instructions, in assembly so that each is one instruction with a known address
 * and follows the function's label at once (System V ABI: arguments in rdi, esi; result in eax).
 */
unsigned int touch_load(volatile unsigned char *byte);
void touch_store(volatile unsigned char *byte, unsigned int value);
__asm__(".text\n"
	".type touch_load, @function\n"
	"touch_load:\n"
	"	movzbl (%rdi), %eax\n"
	"	ret\n"
	".size touch_load, .-touch_load\n"
	".type touch_store, @function\n"
	"touch_store:\n"
	"	movb %sil, (%rdi)\n"
	"	ret\n"
	".size touch_store, .-touch_store\n");

struct request {
	const char *file;
	unsigned long offset;
	unsigned long length;
	int store;
	unsigned int value;
};

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

/* Touch the byte once; returns the value that was loaded or stored. */
static unsigned int touch(volatile unsigned char *byte, int store, unsigned int value)
{
	if (!store)
		return touch_load(byte);
	touch_store(byte, value);
	return value;
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
		{ "offset", required_argument, NULL, 'o' },
		{ "length", required_argument, NULL, 'l' },
		{ "access", required_argument, NULL, 'a' },
		{ "value", required_argument, NULL, 'v' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned long value = 0;
	int option, has_access = 0, fine = 1;

	while ((option = getopt_long(count, words, "", options, NULL)) != -1) {
		switch (option) {
		case 'f':
			request->file = optarg;
			break;
		case 'o':
			fine &= parse_number(optarg, ~0UL, &request->offset);
			break;
		case 'l':
			fine &= parse_number(optarg, ~0UL, &request->length);
			break;
		case 'a':
			request->store = !strcmp(optarg, "store");
			has_access = request->store || !strcmp(optarg, "load");
			break;
		case 'v':
			fine &= parse_number(optarg, 255, &value);
			break;
		default:
			return 0;
		}
	}
	request->value = value;
	return fine && has_access && request->file && request->offset < request->length &&
	       optind == count;
}

static int told_to_go(void)
{
	char line[16];

	return fgets(line, sizeof(line), stdin) && !strcmp(line, "go\n");
}

static int run(const struct request *request)
{
	volatile unsigned char *byte;
	unsigned char *mapping;
	int file;

	printf("{\"step\":\"started\",\"pid\":%d}\n", getpid());
	file = open(request->file, O_RDWR | O_CLOEXEC);
	if (file < 0)
		return failed("open");
	mapping = mmap(NULL, request->length, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (mapping == MAP_FAILED)
		return failed("mmap");
	printf("{\"step\":\"mapped\",\"mapping\":\"%p\",\"length\":%lu}\n", mapping,
	       request->length);

	catch_signals();
	byte = mapping + request->offset;
	if (sigsetjmp(after_signal, 1)) {
		printf("{\"step\":\"failed\",\"call\":\"first-touch\",\"signal\":%d}\n",
		       caught.number);
		return EXIT_FAILED;
	}
	printf("{\"step\":\"first-touch\",\"value\":%u}\n",
	       touch(byte, request->store, ~request->value & 0xff));
	printf("{\"step\":\"armed\",\"address\":\"%p\",\"rip\":\"%p\"}\n", (void *)byte,
	       request->store ? (void *)touch_store : (void *)touch_load);

	errno = 0;
	if (!told_to_go())
		return failed("read");
	printf("{\"step\":\"touching\"}\n");
	if (sigsetjmp(after_signal, 1))
		printf("{\"step\":\"outcome\",\"kind\":\"signal\",\"signal\":%d,\"code\":%d,"
		       "\"address\":\"0x%lx\",\"rip\":\"0x%lx\"}\n",
		       caught.number, caught.code, caught.address, caught.rip);
	else
		printf("{\"step\":\"outcome\",\"kind\":\"value\",\"value\":%u}\n",
		       touch(byte, request->store, request->value));
	printf("{\"step\":\"done\"}\n");
	return 0;
}

int main(int count, char **words)
{
	struct request request = { 0 };

	if (!parse(count, words, &request)) {
		fprintf(stderr, "usage: probe --file PATH --offset N --length BYTES "
				"--access load|store [--value BYTE]; N is less than BYTES\n");
		return EXIT_BAD_USAGE;
	}
	setvbuf(stdout, NULL, _IOLBF, 0); /* a step is told before the next one is taken */
	return run(&request);
}
