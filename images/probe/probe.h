/*
 * What an access is to the probe. Each file of access/ registers one, and the probe finds them
 * all: nothing else has to know of a new one.
 */
#ifndef PROBE_H
#define PROBE_H

#include <sys/types.h>

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
};

struct access {
	const char *name; /* as in hostfault/access/ */
	int writes;
	/* Touch the byte once, by exactly one instruction or one system call. */
	enum touched (*touch)(const struct place *place, unsigned int *value);
	const void *rip; /* of the touching instruction; NULL if the kernel has it */
} __attribute__((aligned(64))); /* so that the section is an array, whatever the linker adds */

#define ACCESS(id, ...)                                                                           \
	static const struct access access_##id                                                    \
		__attribute__((used, section("accesses"))) = { .name = #id, __VA_ARGS__ }

#endif
