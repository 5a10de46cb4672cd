/*
 * dma: a device stores the byte, for a read of its disk past the page cache.
 *
 * Page N of the disk is full of the byte N. The kernel pins the page and hands its guest-physical
 * address to the device; no instruction of this guest touches it.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "../probe.h"

enum { SECTOR = 512 };

static enum touched dma(const struct place *place, unsigned int *value)
{
	const char *name = getenv("HOSTFAULT_DISK"); /* where there is no guest, and no device */
	unsigned long sector = (unsigned long)place->byte & ~(SECTOR - 1UL);
	int disk = open(name ? name : "/dev/vda", O_RDONLY | O_DIRECT | O_CLOEXEC);
	ssize_t done;

	if (disk < 0)
		return TOUCHED_ERRNO;
	done = pread(disk, (void *)sector, SECTOR, (off_t)(*value * PAGE));
	return close_one(disk, done == SECTOR ? TOUCHED_VALUE : TOUCHED_ERRNO);
}

ACCESS(dma, .writes = 1, .touch = dma);
