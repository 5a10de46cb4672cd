/* uring: the kernel loads the byte from the file for an io_uring. */
#include <errno.h>
#include <linux/io_uring.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "../probe.h"

/* A ring of one entry: submission and completion queue in one mapping (io_uring_setup(2)). */
struct ring {
	int fd;
	unsigned char *queues;
	size_t length;
	struct io_uring_sqe *entry;
	struct io_uring_params params;
};

static int open_ring(struct ring *ring)
{
	size_t of_submissions, of_completions;

	ring->fd = syscall(SYS_io_uring_setup, 1, &ring->params);
	if (ring->fd < 0)
		return -1;
	of_submissions = ring->params.sq_off.array + sizeof(unsigned int);
	of_completions = ring->params.cq_off.cqes +
			 ring->params.cq_entries * sizeof(struct io_uring_cqe);
	ring->length = of_submissions > of_completions ? of_submissions : of_completions;
	ring->queues = mmap(NULL, ring->length, PROT_READ | PROT_WRITE, MAP_SHARED, ring->fd,
			    IORING_OFF_SQ_RING);
	ring->entry = mmap(NULL, sizeof(*ring->entry), PROT_READ | PROT_WRITE, MAP_SHARED,
			   ring->fd, IORING_OFF_SQES);
	return ring->queues == MAP_FAILED || ring->entry == MAP_FAILED ? -1 : 0;
}

/* What the kernel answers to a read of one byte: 1, 0 at the end of the file, or -errno. */
static int read_by_ring(struct ring *ring, const struct place *place, unsigned char *byte)
{
	struct io_uring_cqe *answers =
		(struct io_uring_cqe *)(ring->queues + ring->params.cq_off.cqes);
	unsigned int *tail = (unsigned int *)(ring->queues + ring->params.sq_off.tail);

	memset(ring->entry, 0, sizeof(*ring->entry));
	ring->entry->opcode = IORING_OP_READ;
	ring->entry->fd = place->file;
	ring->entry->off = place->offset;
	ring->entry->addr = (unsigned long)byte;
	ring->entry->len = 1;
	*(unsigned int *)(ring->queues + ring->params.sq_off.array) = 0;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	return answers[0].res;
}

static enum touched uring(const struct place *place, unsigned int *value)
{
	struct ring ring = { .fd = -1 };
	unsigned char byte = 0;
	int done;

	if (open_ring(&ring))
		return TOUCHED_ERRNO;
	done = read_by_ring(&ring, place, &byte);
	munmap(ring.entry, sizeof(*ring.entry));
	munmap(ring.queues, ring.length);
	close(ring.fd);
	*value = byte;
	if (done < 0) {
		errno = -done;
		return TOUCHED_ERRNO;
	}
	return done ? TOUCHED_VALUE : TOUCHED_END;
}

ACCESS(uring, .touch = uring);
