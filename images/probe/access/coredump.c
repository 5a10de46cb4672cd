/*
 * coredump: the kernel loads the page for a core file, by gup and a copy of its own (core(5)).
 *
 * A child dies by SIGABRT, and the byte is looked for in what the kernel has dumped of it. The core
 * has of the mapping this page alone: no other one of it is to be touched. What lies above it, the
 * stack for one, is dumped, so that a page that is left out is a hole in the middle of the file.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../probe.h"

static const char all_kinds[] = "0x1ff"; /* of mappings, those of DAX too: coredump_filter */
enum { ABOVE = 64 }; /* pages above the page that are not dumped: the mapping has fewer */

static int write_text(const char *path, const char *text)
{
	int file = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t done = file < 0 ? -1 : write(file, text, strlen(text));

	if (file >= 0)
		close(file);
	return done == (ssize_t)strlen(text) ? 0 : -1;
}

/* madvise(2) goes on over what is not mapped, and says ENOMEM of that. */
static int leave_out(unsigned long begin, unsigned long end)
{
	return madvise((void *)begin, end - begin, MADV_DONTDUMP) && errno != ENOMEM;
}

/* The child: dump core in this folder, with one page of the mapping; an exit code is an errno. */
static void dump(const char *folder, unsigned long page)
{
	struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };

	if (chdir(folder) || setrlimit(RLIMIT_CORE, &unlimited) ||
	    write_text("/proc/self/coredump_filter", all_kinds) || leave_out(PAGE, page) ||
	    leave_out(page + PAGE, page + (1 + ABOVE) * PAGE))
		_exit(errno);
	signal(SIGABRT, SIG_DFL);
	raise(SIGABRT);
	_exit(EINTR);
}

/* Returns 0 once the child has died of its dump, short or not, or -1 with an errno. */
static int wait_for_core(pid_t child)
{
	int status;

	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return -1;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT)
		return 0;
	errno = WIFEXITED(status) ? WEXITSTATUS(status) : EIO; /* something else ended it first */
	return -1;
}

/* The core has its pattern's name, with a number behind it or not (core(5)). */
static int open_core(const char *folder)
{
	DIR *files = opendir(folder);
	struct dirent *each;
	int core = -1;

	if (!files)
		return -1;
	errno = ENOENT;
	while (core < 0 && (each = readdir(files)))
		if (!strncmp(each->d_name, "core", 4)) {
			core = openat(dirfd(files), each->d_name, O_RDONLY | O_CLOEXEC);
			unlinkat(dirfd(files), each->d_name, 0);
		}
	closedir(files);
	return core;
}

/* Where the core has a byte of memory (elf(5), PT_LOAD); 0: it has no such segment. */
static off_t place_in(int core, unsigned long address)
{
	Elf64_Ehdr head;
	Elf64_Phdr part;

	if (pread(core, &head, sizeof(head), 0) != sizeof(head))
		return 0;
	for (int number = 0; number < head.e_phnum; number++) {
		off_t at = (off_t)(head.e_phoff + (unsigned long)number * sizeof(part));

		if (pread(core, &part, sizeof(part), at) != sizeof(part))
			return 0;
		if (part.p_type == PT_LOAD && address >= part.p_vaddr &&
		    address - part.p_vaddr < part.p_filesz)
			return (off_t)(part.p_offset + address - part.p_vaddr);
	}
	return 0;
}

static enum touched look_into(int core, unsigned long address, unsigned int *value)
{
	off_t at = place_in(core, address), page = at & ~(off_t)(PAGE - 1);
	unsigned char byte;

	if (!at || lseek(core, 0, SEEK_END) <= at)
		return TOUCHED_END;
	if (lseek(core, page, SEEK_DATA) != page)
		return TOUCHED_HOLE;
	if (pread(core, &byte, 1, at) != 1)
		return TOUCHED_ERRNO;
	*value = byte;
	return TOUCHED_VALUE;
}

static enum touched coredump(const struct place *place, unsigned int *value)
{
	unsigned long address = (unsigned long)place->byte;
	char folder[] = "/tmp/hostfault-core-XXXXXX";
	int core = -1, error;
	pid_t child;

	if (!mkdtemp(folder))
		return TOUCHED_ERRNO;
	child = fork();
	if (!child)
		dump(folder, address & ~(PAGE - 1));
	if (child > 0 && !wait_for_core(child))
		core = open_core(folder);
	error = errno;
	rmdir(folder);
	errno = error;
	return core < 0 ? TOUCHED_ERRNO : close_one(core, look_into(core, address, value));
}

ACCESS(coredump, .touch = coredump);
