/*
 * What an access is to the probe. Each file of access/ registers one, and the probe finds them
 * all: nothing else has to know of a new one.
 */
#ifndef PROBE_H
#define PROBE_H

#include <errno.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

#define PAGE 4096UL

/* The byte that is touched: mapped, and at an offset of the file that is mapped. */
struct place {
	volatile unsigned char *byte;
	int file;
	off_t offset;
};

/* What a touch that was no signal came to. */
enum touched {
	TOUCHED_VALUE, /* *value is the byte that was read or left */
	TOUCHED_ERRNO, /* a system call failed, errno says how */
	TOUCHED_END, /* a system call said that the file ends before that byte */
	TOUCHED_HOLE, /* what the kernel wrote of the page is a hole: it has left it out */
	TOUCHED_NOT, /* something else came between, and is no outcome: errno is what */
};

extern unsigned long probe_seed; /* --seed: what is left to chance follows from it */

struct access {
	const char *name; /* as in hostfault/access/ */
	int writes;
	/* What can be done before a touch, and is none; 0, or -1 with an errno. NULL: nothing. */
	int (*prepare)(const struct place *place);
	/* Touch the byte once, by exactly one instruction or one system call. */
	enum touched (*touch)(const struct place *place, unsigned int *value);
	const void *rip; /* of the touching instruction; NULL if the kernel has it */
} __attribute__((aligned(64))); /* so that the section is an array, whatever the linker adds */

/* Place this task: "" anywhere, "pinned", else migrating; -1 with an errno if that can't be. */
int place_task(const char *how);

enum { ACROSS = 16 }; /* bytes, half of them before the page */

/*
 * From where ACROSS bytes hold the place's byte and the end of the page before; without such a page
 * in the mapping, from the byte on. Asking whether a page is mapped does not touch it (msync(2)).
 */
static inline volatile unsigned char *across(const struct place *place)
{
	unsigned long page = (unsigned long)place->byte & ~(PAGE - 1);

	if ((unsigned long)place->byte - page >= ACROSS / 2 ||
	    msync((void *)(page - PAGE), PAGE, MS_ASYNC))
		return place->byte;
	return (volatile unsigned char *)page - ACROSS / 2;
}

/* Close what was opened for a touch, without losing its errno. */
static inline enum touched close_one(int file, enum touched touched)
{
	int error = errno;

	close(file);
	errno = error;
	return touched;
}

static inline enum touched close_pipe(const int ends[2], enum touched touched)
{
	return close_one(ends[1], close_one(ends[0], touched));
}

#define ACCESS(id, ...)                                                                           \
	static const struct access access_##id                                                    \
		__attribute__((used, section("accesses"))) = { .name = #id, __VA_ARGS__ }

#endif
