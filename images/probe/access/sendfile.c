/* sendfile: the kernel loads the byte from the file and hands it on. */
#include <sys/sendfile.h>
#include <unistd.h>

#include "../probe.h"

static enum touched send_byte(const struct place *place, unsigned int *value)
{
	off_t offset = place->offset;
	unsigned char byte = 0;
	int ends[2];
	ssize_t sent, done;

	if (pipe(ends))
		return TOUCHED_ERRNO;
	sent = done = sendfile(ends[1], place->file, &offset, 1);
	if (sent == 1)
		done = read(ends[0], &byte, 1);
	*value = byte;
	if (sent == 0)
		return close_pipe(ends, TOUCHED_END);
	return close_pipe(ends, done == 1 ? TOUCHED_VALUE : TOUCHED_ERRNO);
}

ACCESS(sendfile, .touch = send_byte);
