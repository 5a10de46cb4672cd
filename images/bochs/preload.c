/*
 * Preloaded into Bochs 3.0: saves the machine when it is told to, without a person, loads it without
 * a copy, lets it begin with large files in its memory, and draws nothing.
 *
 * Saving. Bochs saves its state from a button of its window only (bx_gui_c::save_restore_handler() of
 * gui/gui.cc). Its display on a terminal (gui/term.cc) has no buttons, but asks curses for a key
 * each time when Bochs looks at what people do: at the very place from which a display with
 * buttons would call the handler. So this library is curses' wgetch(). If a folder waits at the
 * other end of descriptor HOSTFAULT_CONTROL, it calls what the handler calls,
 * bx_real_sim_c::save_state(), and answers "saved" or "failed". When it is asked for the first time,
 * the machine runs: then it prints BEGINNING, as what Bochs has printed before was words of its own.
 *
 * The names are C++'s (Itanium ABI) for "bx_simulator_interface_c *SIM" of gui/siminterface.h and
 * for "bool bx_real_sim_c::save_state(const char *)"; a method takes the object as its first
 * argument. A Bochs without them cannot be saved: that is said as soon as the library is loaded.
 *
 * Loading. restore_bochs_param() of gui/siminterface.cc first copies the saved memory to a temporary
 * file, from which read_block() of memory/memory_stub.cc then reads: once, as all of the machine's
 * memory has room in Bochs's. Where /tmp is a tmpfs such a copy of 1 GiB is memory. So if
 * HOSTFAULT_MEMORY names the saved memory, the temporary file is that: what is written is what is
 * there already, and goes nowhere.
 *
 * Files in memory. BX_MEM_C::load_RAM() of memory/misc_mem.cc reads a file (optramimage) to where
 * the memory of its first block is, all at once if read(2) gives all; but Bochs gives a block of
 * 128 KiB its memory when it is first used, so the next one may be anywhere. load_RAM() asks again
 * for what it did not get, at the address of that. So read() gives a block at most.
 *
 * Drawing. The display is on a pseudo-terminal of its own that nobody reads. Once that is full, which
 * took it six minutes, a write to it waits for ever, and the machine with it. refresh() and
 * curs_set() are what of gui/term.cc writes, so they are this library's, and write nothing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define NO_KEY (-1)	/* curses.h: ERR */
#define DONE 0		/* curses.h: OK */
#define LONGEST 512	/* Bochs's own limit of a path, BX_PATHNAME_LEN */
#define BEGINNING "HOSTFAULT-LINE\n"	/* hostfault/agent/line.py */
#define BLOCK (128 << 10)	/* Bochs's default of memory's block_size */

static int control = -1;
static void **simulator;
static bool (*save_state)(void *, const char *);
static bool runs;

static void tell(const char *word)
{
	if (send(control, word, strlen(word), MSG_NOSIGNAL) < 0)
		exit(1);	/* the harness is gone */
}

__attribute__((constructor)) static void find(void)
{
	const char *number = getenv("HOSTFAULT_CONTROL");

	if (!number)
		return;
	control = atoi(number);
	simulator = dlsym(RTLD_DEFAULT, "SIM");
	save_state = (bool (*)(void *, const char *))dlsym(RTLD_DEFAULT,
						"_ZN13bx_real_sim_c10save_stateEPKc");
	tell(simulator && save_state ? "ready\n" : "unknown\n");
}

ssize_t read(int fd, void *buffer, size_t size)
{
	return syscall(SYS_read, fd, buffer, size > BLOCK ? BLOCK : size);
}

struct saved {
	int fd;
	off64_t at;
};

static ssize_t read_saved(void *cookie, char *buffer, size_t size)
{
	struct saved *saved = cookie;
	ssize_t length = pread64(saved->fd, buffer, size, saved->at);

	if (length > 0)
		saved->at += length;
	return length;
}

static ssize_t ignore(void *cookie, const char *buffer, size_t size)
{
	struct saved *saved = cookie;

	(void)buffer;
	saved->at += size;
	return size;
}

static int seek_saved(void *cookie, off64_t *offset, int whence)
{
	struct saved *saved = cookie;

	if (whence == SEEK_END)
		return -1;	/* nobody asks */
	saved->at = *offset + (whence == SEEK_CUR ? saved->at : 0);
	*offset = saved->at;
	return 0;
}

FILE *tmpfile64(void)
{
	static const cookie_io_functions_t functions = {
		.read = read_saved, .write = ignore, .seek = seek_saved,
	};
	static struct saved saved;
	const char *path = getenv("HOSTFAULT_MEMORY");

	if (!path || saved.fd)
		return NULL;	/* Bochs takes it for a full disk, and says so */
	saved.fd = open(path, O_RDONLY | O_CLOEXEC);
	return saved.fd < 0 ? NULL : fopencookie(&saved, "w+", functions);
}

int refresh(void)
{
	return DONE;
}

int curs_set(int visibility)
{
	(void)visibility;
	return DONE;
}

int wgetch(void *window)
{
	char folder[LONGEST];
	ssize_t length;

	(void)window;
	if (control < 0)
		return NO_KEY;
	if (!runs) {
		fputs(BEGINNING, stdout);
		fflush(stdout);
		runs = true;
	}
	length = recv(control, folder, sizeof(folder) - 1, MSG_DONTWAIT);
	if (length == 0)
		exit(1);
	if (length < 0 || !save_state)
		return NO_KEY;
	folder[length] = '\0';
	folder[strcspn(folder, "\n")] = '\0';
	tell(save_state(*simulator, folder) ? "saved\n" : "failed\n");
	return NO_KEY;
}
