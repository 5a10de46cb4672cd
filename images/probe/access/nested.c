/*
 * nested: a guest of this guest loads the byte.
 *
 * The probe is that guest's VMM (Documentation/virt/kvm/api.rst): one vCPU in long mode, at
 * privilege level 3, whose whole program is to load a byte and to hand it over by an OUT. It runs on
 * pages of the probe's, and has the touched page as a slot that it may only read, at the address
 * that the page has in this guest: the host's tracepoint shows the address that a guest's guest
 * touches, and so it shows the frame that the host knows.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

#include "../probe.h"

/* The pages that it runs on, from address 0 on, virtual ones as well. */
enum { LEVEL_4, LEVEL_3, LEVEL_2, CODE, OWN_PAGES };

enum { PORT = 0x10, MOST_LEAVES = 256 /* of CPUID */ };
enum { MOST_PLACES = 2 }; /* the first touch's and the second's */

#define LARGE (1UL << 21) /* bytes that an entry of LEVEL_2 maps */
#define RIP (CODE * PAGE)

/* Entries of page tables: present, writable, for user space, accessed; and a large page, dirty. */
#define TABLE 0x27UL
#define LARGE_PAGE 0xe7UL

static const unsigned char program[] = {
	0x0f, 0xb6, 0x03, /* movzbl (%rbx), %eax */
	0xe6, PORT, /* outb %al, $PORT */
};

static struct {
	int machine;
	int vcpu;
	struct kvm_run *run;
	unsigned char *own; /* its pages */
} guest = { .vcpu = -1 };

/* The page of each place, here and in the guest, where the entry behind its own pages' maps it. */
static struct {
	unsigned long page;
	unsigned long address;
} places[MOST_PLACES];

/* The page's frame in this guest, 0: not known. That of /dev/mem is its offset. (pagemap.rst) */
static unsigned long frame_of(const struct place *place)
{
	unsigned long page = (unsigned long)place->byte & ~(PAGE - 1);
	unsigned long entry = 0, present = 1UL << 63, frame = (1UL << 55) - 1;
	struct stat about;
	int map, done;

	if (!fstat(place->file, &about) && S_ISCHR(about.st_mode) && about.st_rdev == makedev(1, 1))
		return place->offset / PAGE;
	if (madvise((void *)page, PAGE, MADV_POPULATE_READ))
		return 0;
	map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (map < 0)
		return 0;
	done = pread(map, &entry, sizeof(entry), page / PAGE * sizeof(entry));
	close_one(map, TOUCHED_VALUE);
	errno = ENXIO;
	return done == sizeof(entry) && entry & present ? entry & frame : 0;
}

static int give(unsigned int slot, unsigned long at, unsigned long size, void *memory,
		unsigned int flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.flags = flags,
		.guest_phys_addr = at,
		.memory_size = size,
		.userspace_addr = (unsigned long)memory,
	};

	return ioctl(guest.machine, KVM_SET_USER_MEMORY_REGION, &region);
}

/* 64-bit mode at level 3, where OUT is allowed: the registers that say so. */
static int set_mode(void)
{
	struct kvm_sregs state;
	struct kvm_segment flat = { .limit = ~0U, .selector = 3, .present = 1, .dpl = 3, .s = 1,
				    .g = 1, .type = 3 };

	if (ioctl(guest.vcpu, KVM_GET_SREGS, &state))
		return -1;
	state.ds = state.es = state.ss = state.cs = flat;
	state.cs.type = 11;
	state.cs.l = 1;
	state.cr3 = LEVEL_4 * PAGE;
	state.cr4 = 1 << 5; /* PAE */
	state.cr0 = 0x80000011; /* PG, ET, PE */
	state.efer = 0x500; /* LMA, LME */
	return ioctl(guest.vcpu, KVM_SET_SREGS, &state);
}

static unsigned long *table(int page)
{
	return (unsigned long *)(guest.own + page * PAGE);
}

/* A vCPU that can all that KVM has for one: without that it has no 64-bit mode. */
static int make_vcpu(int kvm)
{
	static union {
		struct kvm_cpuid2 about;
		char room[sizeof(struct kvm_cpuid2) + MOST_LEAVES * sizeof(struct kvm_cpuid_entry2)];
	} cpu = { .about.nent = MOST_LEAVES };
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	guest.vcpu = ioctl(guest.machine, KVM_CREATE_VCPU, 0);
	if (size < 0 || guest.vcpu < 0 || ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpu) ||
	    ioctl(guest.vcpu, KVM_SET_CPUID2, &cpu))
		return -1;
	guest.run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, guest.vcpu, 0);
	return guest.run == MAP_FAILED ? -1 : set_mode();
}

/* A machine that has no page but its own. */
static int make_machine(int kvm)
{
	guest.machine = ioctl(kvm, KVM_CREATE_VM, 0);
	guest.own = mmap(NULL, OWN_PAGES * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (guest.machine < 0 || guest.own == MAP_FAILED)
		return -1;
	table(LEVEL_4)[0] = LEVEL_3 * PAGE | TABLE;
	table(LEVEL_3)[0] = LEVEL_2 * PAGE | TABLE;
	table(LEVEL_2)[0] = LARGE_PAGE;
	memcpy(guest.own + CODE * PAGE, program, sizeof(program));
	return give(0, 0, OWN_PAGES * PAGE, guest.own, 0);
}

static int make_guest(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), failed;

	if (kvm < 0)
		return -1;
	failed = make_machine(kvm) || make_vcpu(kvm);
	close_one(kvm, TOUCHED_VALUE);
	return failed ? -1 : 0;
}

/* Which place a page is, MOST_PLACES: none. */
static unsigned int find(unsigned long page)
{
	unsigned int number = 0;

	while (number < MOST_PLACES && places[number].page != page)
		number++;
	return number;
}

/* All but the touch: a page that has no frame yet is given one, but is not accessed. */
static int prepare(const struct place *place)
{
	unsigned long page = (unsigned long)place->byte & ~(PAGE - 1), address;
	unsigned int number;

	if (guest.vcpu < 0 && make_guest())
		return -1;
	if (find(page) < MOST_PLACES)
		return 0;
	address = frame_of(place) * PAGE;
	if (!address)
		return -1;
	number = find(0);
	places[number].page = page;
	places[number].address = address;
	table(LEVEL_2)[1 + number] = (address & ~(LARGE - 1)) | LARGE_PAGE;
	return give(1 + number, address, PAGE, (void *)page, KVM_MEM_READONLY);
}

/* Have it load the byte: KVM_RUN once, and again only where a signal has come between. */
static int run(const struct place *place)
{
	unsigned long byte = (unsigned long)place->byte, page = byte & ~(PAGE - 1);
	unsigned int number = find(page);
	struct kvm_regs registers = {
		.rip = RIP,
		.rbx = (1 + number) * LARGE + places[number].address % LARGE + byte % PAGE,
		.rflags = 0x3002, /* IOPL 3 */
	};

	if (ioctl(guest.vcpu, KVM_SET_REGS, &registers))
		return -1;
	while (ioctl(guest.vcpu, KVM_RUN, 0))
		if (errno != EINTR)
			return -1;
	return 0;
}

static enum touched nested(const struct place *place, unsigned int *value)
{
	struct kvm_run *state = guest.run;

	if (run(place))
		return TOUCHED_ERRNO;
	if (state->exit_reason != KVM_EXIT_IO || state->io.port != PORT) {
		printf("{\"step\":\"exit\",\"reason\":%u,\"more\":%u}\n", state->exit_reason,
		       state->internal.suberror);
		errno = EPROTO;
		return TOUCHED_NOT;
	}
	*value = ((unsigned char *)state)[state->io.data_offset];
	return TOUCHED_VALUE;
}

ACCESS(nested, .prepare = prepare, .touch = nested, .rip = (void *)RIP);
