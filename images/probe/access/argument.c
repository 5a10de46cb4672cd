/* argument: the kernel copies the argument of a system call out of the page. */
#include <unistd.h>

#include "../probe.h"

static enum touched argument(const struct place *place, unsigned int *value)
{
	unsigned char byte = 0;
	int ends[2];
	ssize_t done;

	if (pipe(ends))
		return TOUCHED_ERRNO;
	done = write(ends[1], (const void *)place->byte, 1);
	if (done == 1)
		done = read(ends[0], &byte, 1);
	*value = byte;
	return close_pipe(ends, done == 1 ? TOUCHED_VALUE : TOUCHED_ERRNO);
}

ACCESS(argument, .touch = argument);
