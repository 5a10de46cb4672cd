/* read: the kernel loads the byte for pread(2). */
#include <unistd.h>

#include "../probe.h"

static enum touched read_byte(const struct place *place, unsigned int *value)
{
	unsigned char byte = 0;
	ssize_t done = pread(place->file, &byte, 1, place->offset);

	if (done < 0)
		return TOUCHED_ERRNO;
	*value = byte;
	return done ? TOUCHED_VALUE : TOUCHED_END;
}

ACCESS(read, .touch = read_byte);
