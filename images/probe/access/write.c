/* write: the kernel stores the byte for pwrite(2). */
#include <unistd.h>

#include "../probe.h"

static enum touched write_byte(const struct place *place, unsigned int *value)
{
	unsigned char byte = *value;
	ssize_t done = pwrite(place->file, &byte, 1, place->offset);

	if (done < 0)
		return TOUCHED_ERRNO;
	return done ? TOUCHED_VALUE : TOUCHED_END;
}

ACCESS(write, .writes = 1, .touch = write_byte);
