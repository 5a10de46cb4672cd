/* procmem: the kernel loads the byte from the task's memory as ptrace(2) does, by gup. */
#include <fcntl.h>
#include <unistd.h>

#include "../probe.h"

static enum touched procmem(const struct place *place, unsigned int *value)
{
	unsigned char byte = 0;
	ssize_t done;
	int memory = open("/proc/self/mem", O_RDONLY | O_CLOEXEC);

	if (memory < 0)
		return TOUCHED_ERRNO;
	done = pread(memory, &byte, 1, (off_t)place->byte);
	*value = byte;
	return close_one(memory, done == 1 ? TOUCHED_VALUE : TOUCHED_ERRNO);
}

ACCESS(procmem, .touch = procmem);
