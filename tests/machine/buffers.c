// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * System calls on one file of a mount with a mapping of another one as their buffer.
 *
 *	buffers DIRECTORY		every way there is; one line of JSON for each
 *	buffers DIRECTORY gone		waits for a line after "mapped", then writes from the mapping
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 64
#define SIZE (PAGES * PAGE)
#define COUNT (4 * PAGE)

static char *mapping;		/* of the file "source" */
static char expected[SIZE];	/* what it holds */
static char other[SIZE];	/* what the file "other" holds */

static void check(int fine, const char *what)
{
	if (fine)
		return;
	printf("{\"step\": \"failed\", \"what\": \"%s\", \"errno\": %d}\n", what, errno);
	exit(1);
}

static int file(const char *name, int flags)
{
	int fd = open(name, flags | O_RDWR | O_CREAT, 0600);

	check(fd >= 0, name);
	return fd;
}

static void fill(const char *name, char *copy, unsigned int seed)
{
	int fd = file(name, O_TRUNC);

	for (int i = 0; i < SIZE; i++) {
		seed = seed * 1103515245 + 12345;
		copy[i] = seed >> 16;
	}
	check(write(fd, copy, SIZE) == SIZE, "fill");
	close(fd);
}

static void map_source(void)
{
	int fd = file("source", 0);

	mapping = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	check(mapping != MAP_FAILED, "mmap");
	close(fd);
	check(!memcmp(mapping, expected, SIZE), "the mapping");
}

static void tell(const char *name, ssize_t done, int same)
{
	printf("{\"step\": \"case\", \"name\": \"%s\", \"done\": %zd, \"errno\": %d, \"same\": %s}\n",
	       name, done, done < 0 ? errno : 0, same ? "true" : "false");
}

/* Compare the first bytes of a file with what was in the mapping at "at". */
static int holds(const char *name, int at)
{
	static char found[COUNT];
	int fd = file(name, 0);
	ssize_t got = read(fd, found, COUNT);

	close(fd);
	return got == COUNT && !memcmp(found, expected + at, COUNT);
}

static ssize_t by_pipe(int fd, int at, int from_mapping)
{
	struct iovec part = { mapping + at, COUNT };
	ssize_t moved, done = 0;
	int ends[2];

	check(!pipe(ends), "pipe");
	if (from_mapping) {
		moved = vmsplice(ends[1], &part, 1, 0);
		if (moved > 0)
			done = splice(ends[0], NULL, fd, NULL, moved, 0);
	} else {
		moved = splice(fd, NULL, ends[1], NULL, COUNT, 0);
		if (moved > 0)
			done = read(ends[0], mapping + at, moved);
	}
	close(ends[0]);
	close(ends[1]);
	return moved < 0 ? moved : done;
}

static void write_cases(void)
{
	static const char *const names[] = { "write", "write direct", "writev", "splice to a file" };
	struct iovec parts[2];
	char target[32];

	for (int i = 0; i < 4; i++) {
		int at = (i + 1) * 8 * PAGE, fd;
		ssize_t done;

		snprintf(target, sizeof(target), "target%d", i);
		fd = file(target, O_TRUNC | (i == 1 ? O_DIRECT : 0));
		parts[0] = (struct iovec){ mapping + at, PAGE };
		parts[1] = (struct iovec){ mapping + at + PAGE, COUNT - PAGE };
		if (i == 2)
			done = writev(fd, parts, 2);
		else if (i == 3)
			done = by_pipe(fd, at, 1);
		else
			done = write(fd, mapping + at, COUNT);
		close(fd);
		tell(names[i], done, done == COUNT && holds(target, at));
	}
}

static void read_cases(void)
{
	static const char *const names[] = { "read", "read direct", "readv", "splice from a file" };
	struct iovec parts[2];

	for (int i = 0; i < 4; i++) {
		int at = (i + 1) * 8 * PAGE, fd = file("other", i == 1 ? O_DIRECT : 0);
		ssize_t done;

		parts[0] = (struct iovec){ mapping + at, PAGE };
		parts[1] = (struct iovec){ mapping + at + PAGE, COUNT - PAGE };
		if (i == 2)
			done = readv(fd, parts, 2);
		else if (i == 3)
			done = by_pipe(fd, at, 0);
		else
			done = read(fd, mapping + at, COUNT);
		close(fd);
		memcpy(expected + at, other, COUNT);
		tell(names[i], done, done == COUNT && !memcmp(mapping, expected, SIZE));
	}
}

static void own_file(void)
{
	int fd = file("source", 0);
	ssize_t done = pwrite(fd, mapping + 5 * PAGE, COUNT, SIZE);

	tell("write to its own file", done, done == COUNT &&
	     pread(fd, other, COUNT, SIZE) == COUNT && !memcmp(other, expected + 5 * PAGE, COUNT));
	close(fd);
}

static void gone(void)
{
	int fd = file("target", O_TRUNC);
	char line[16];

	printf("{\"step\": \"mapped\"}\n");
	check(fgets(line, sizeof(line), stdin) != NULL, "the word");
	tell("write from what is gone", write(fd, mapping + 8 * PAGE, COUNT), 0);
}

int main(int argc, char **argv)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	check(argc >= 2 && !chdir(argv[1]), "usage: buffers DIRECTORY [gone]");
	fill("source", expected, 1);
	fill("other", other, 2);
	map_source();
	if (argc > 2) {
		gone();
	} else {
		write_cases();
		read_cases();
		own_file();
	}
	printf("{\"step\": \"done\"}\n");
	return 0;
}
