// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * What a VMM does about a page that KVM cannot back, as a library that is
 * preloaded into an unmodified QEMU:
 *
 *   LD_PRELOAD=vmm-policy.so HOSTFAULT_VMM_POLICY=mce|stop
 *   HOSTFAULT_VMM_LOG=FILE qemu-system-x86_64 ...
 *
 * mce	the guest gets the machine check that QEMU injects for a page that the
 *	host has poisoned, and runs on.
 * stop	the vCPU is kept out of the guest, and tries again after a while, which
 *	is longer each time until the guest gets on. Who kicks it is answered at
 *	once.
 *
 * Both act on one thing only: KVM_RUN that fails with EFAULT and
 * KVM_EXIT_MEMORY_FAULT (Documentation/virt/kvm/api.rst), for memory that is
 * not private. Everything else is handed on as it is. So is what must not be
 * answered by a machine check, e.g. because the guest has not switched them on:
 * then QEMU does what it does without this library.
 *
 * What was done is in FILE, a line of JSON each. A guest decides how often that
 * is: of each kind the first 64 are written, then those whose number is a power
 * of two.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Newer than the headers that this may be compiled with; from linux/kvm.h. */
#define EXIT_MEMORY_FAULT	39	/* KVM_EXIT_MEMORY_FAULT */
#define FLAGS_ACCESS		7ULL	/* of it: read, write, exec; see CAP_ */
#define SET_USER_MEMORY_REGION2	0x40a0ae49UL
#define CPUID_ENTRIES		256	/* KVM_MAX_CPUID_ENTRIES of asm/kvm_host.h */

/* Of the patch series tell-user-space: KVM_CAP_EXIT_ON_UNBACKED. */
#define CAP_EXIT_ON_UNBACKED	252

/*
 * Registers and bits of x86's machine check architecture, as in QEMU's
 * target/i386/cpu.h (10.0), which has them from the SDM, volume 3, chapter 16,
 * and the APM, volume 2, chapter 9.
 */
#define MSR_MCG_CAP	0x179
#define MSR_MCG_STATUS	0x17a
#define MSR_MCG_CTL	0x17b
#define MSR_MCG_EXT_CTL	0x4d0
#define MSR_MCI_CTL(bank) (0x400 + 4 * (bank))
#define CR4_MCE		(1ULL << 6)
#define MCG_BANKS	0xff
#define MCG_CTL_P	(1ULL << 8)
#define MCG_SER_P	(1ULL << 24)
#define MCG_LMCE_P	(1ULL << 27)
#define MCG_LMCE_EN	(1ULL << 0)	/* of MSR_MCG_EXT_CTL */
#define MCG_RIPV	(1ULL << 0)
#define MCG_EIPV	(1ULL << 1)
#define MCG_MCIP	(1ULL << 2)
#define MCG_LMCE	(1ULL << 3)
#define MCI_VAL		(1ULL << 63)
#define MCI_UC		(1ULL << 61)
#define MCI_EN		(1ULL << 60)
#define MCI_MISCV	(1ULL << 59)
#define MCI_ADDRV	(1ULL << 58)
#define MCI_S		(1ULL << 56)
#define MCI_AR		(1ULL << 55)
#define MCI_POISON	(1ULL << 43)

/*
 * QEMU's kvm_mce_inject() (target/i386/kvm/kvm.c) for BUS_MCEERR_AR: one bank
 * and one MISC for all, a status that depends on the guest's vendor. Where
 * machine checks are for all vCPUs (cpu_x86_inject_mce() of helper.c), the
 * others get an error without an address in bank 1.
 */
#define BANK		9
#define STATUS		(MCI_VAL | MCI_UC | MCI_EN | MCI_MISCV | MCI_ADDRV)
#define STATUS_AMD	(STATUS | MCI_POISON)
#define STATUS_INTEL	(STATUS | MCI_S | MCI_AR | 0x134)
#define MISC		((2 << 6) | 0xc)	/* a physical address, bits 63 to 12 of it */
#define BANK_OTHERS	1
#define STATUS_OTHERS	(MCI_VAL | MCI_UC)

#define FIRST_PAUSE	10000000LL	/* ns that a vCPU is kept out at first */
#define LONGEST_PAUSE	160000000LL	/* ns; each pause is twice the last one */
#define LINES		64		/* of each kind, before only some are logged */

struct memory_fault {
	uint64_t flags;
	uint64_t gpa;
	uint64_t size;
};

struct vcpu {
	int fd;
	pid_t thread;
	struct kvm_run *run;
	atomic_bool check_others;	/* a machine check elsewhere is for this one, too */
	uint64_t held;			/* gpa that it is kept out for, or NOBODY */
	uint64_t tries;			/* how often that failed in a row */
	int64_t pause;			/* ns, the last one */
	int64_t again;			/* when to try again, ns */
	struct vcpu *next;
};

struct slot {
	uint32_t number;
	uint64_t gpa;
	uint64_t size;
};

enum deed { LOADED, CAPABILITY, INJECTED, PASSED, HELD, RELEASED, DEEDS };

static const char * const deed_names[DEEDS] = {
	"loaded", "capability", "injected", "passed", "held", "released",
};

#define NOBODY (~0ULL)

static bool inject_policy;	/* mce; else stop */
static int log_fd = -1;
static atomic_ulong deeds_done[DEEDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct slot *slots;	/* guarded by lock, as all that follow */
static size_t slots_used, slots_room;
static struct vcpu *vcpus;
static __thread struct vcpu *mine;

static long call(int fd, unsigned long request, void *argument)
{
	return syscall(SYS_ioctl, fd, request, argument);
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* One line; @more is ", " and further members, or empty. Keeps errno. */
static void note(enum deed deed, const char *more, ...)
{
	unsigned long number = atomic_fetch_add(&deeds_done[deed], 1) + 1;
	int error = errno, length;
	char line[512], rest[256];
	va_list arguments;

	if (number > LINES && (number & (number - 1)))
		return;
	va_start(arguments, more);
	vsnprintf(rest, sizeof(rest), more, arguments);
	va_end(arguments);
	length = snprintf(line, sizeof(line),
			  "{\"did\": \"%s\", \"n\": %lu, \"at\": %.6f, \"thread\": %ld%s}\n",
			  deed_names[deed], number, now() / 1e9, syscall(SYS_gettid), rest);
	if (write(log_fd, line, length) != length)
		dprintf(STDERR_FILENO, "vmm-policy: its log cannot be written\n");
	errno = error;
}

static void __attribute__((noreturn)) refuse(const char *why)
{
	dprintf(STDERR_FILENO, "vmm-policy: %s\n", why);
	_exit(64);
}

static void __attribute__((constructor)) load(void)
{
	const char *policy = getenv("HOSTFAULT_VMM_POLICY");
	const char *log = getenv("HOSTFAULT_VMM_LOG");

	if (!policy || (strcmp(policy, "mce") && strcmp(policy, "stop")))
		refuse("HOSTFAULT_VMM_POLICY is neither mce nor stop");
	inject_policy = !strcmp(policy, "mce");
	log_fd = log ? open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
	if (log_fd < 0)
		refuse("HOSTFAULT_VMM_LOG names no file that can be written");
	note(LOADED, ", \"policy\": \"%s\"", policy);
}

/* --- what QEMU tells KVM ------------------------------------------------------------------ */

/* A kernel that can tell of such pages, and asks to be told that somebody listens. */
static void enable_exits(int vm)
{
	struct kvm_enable_cap cap = { .cap = CAP_EXIT_ON_UNBACKED };
	long there = call(vm, KVM_CHECK_EXTENSION, (void *)(long)CAP_EXIT_ON_UNBACKED);
	bool enabled = there > 0 && call(vm, KVM_ENABLE_CAP, &cap) == 0;

	note(CAPABILITY, ", \"there\": %s, \"enabled\": %s", there > 0 ? "true" : "false",
	     enabled ? "true" : "false");
}

/* The fields that KVM_SET_USER_MEMORY_REGION and its successor have in common. */
static void remember_slot(const struct kvm_userspace_memory_region *region)
{
	size_t at;

	pthread_mutex_lock(&lock);
	for (at = 0; at < slots_used && slots[at].number != region->slot; at++)
		;
	if (at == slots_used && at == slots_room) {
		slots_room = 2 * slots_room + 64;
		slots = realloc(slots, slots_room * sizeof(*slots));
		if (!slots)
			refuse("no memory for a list of memory slots");
	}
	slots_used += at == slots_used;
	/* Size 0: it is gone. */
	slots[at] = (struct slot){ region->slot, region->guest_phys_addr, region->memory_size };
	pthread_mutex_unlock(&lock);
}

static bool in_a_slot(uint64_t gpa)
{
	bool found = false;
	size_t at;

	pthread_mutex_lock(&lock);
	for (at = 0; at < slots_used; at++)
		found |= gpa - slots[at].gpa < slots[at].size;
	pthread_mutex_unlock(&lock);
	return found;
}

/* --- machine checks ----------------------------------------------------------------------- */

static bool get_msr(int fd, uint32_t index, uint64_t *value)
{
	struct {
		struct kvm_msrs head;
		struct kvm_msr_entry entry;
	} msrs = { .head.nmsrs = 1, .entry.index = index };

	if (call(fd, KVM_GET_MSRS, &msrs) != 1)
		return false;
	*value = msrs.entry.data;
	return true;
}

/* Whether the guest believes to run on an AMD CPU (IS_AMD_CPU() of QEMU). */
static bool is_amd(int fd)
{
	struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 entries[CPUID_ENTRIES];
	} cpuid = { .head.nent = CPUID_ENTRIES };
	uint32_t at;

	if (call(fd, KVM_GET_CPUID2, &cpuid))
		return false;
	for (at = 0; at < cpuid.head.nent; at++) {
		struct kvm_cpuid_entry2 *entry = &cpuid.entries[at];

		if (entry->function == 0)
			return !memcmp(&entry->ebx, "Auth", 4) && !memcmp(&entry->edx, "enti", 4) &&
			       !memcmp(&entry->ecx, "cAMD", 4);
	}
	return false;
}

/*
 * Why an uncorrected error must not be injected, or NULL. KVM_X86_SET_MCE would
 * raise a triple fault where the guest has not enabled machine checks or has
 * one in progress, and drop the error in silence where it has masked it.
 * That one recovers from some errors an Intel CPU says in MCG_CAP; AMD has no
 * such bit, and QEMU 11.1 shows none to such a guest.
 */
static const char *why_no_check(int fd, unsigned int bank, bool amd)
{
	uint64_t cap, status, control;
	struct kvm_sregs sregs;

	if (!get_msr(fd, MSR_MCG_CAP, &cap) || bank >= (cap & MCG_BANKS))
		return "the guest has no machine check architecture";
	if (!amd && !(cap & MCG_SER_P))
		return "the guest knows no machine check that one recovers from";
	if (call(fd, KVM_GET_SREGS, &sregs) || !(sregs.cr4 & CR4_MCE))
		return "the guest has not enabled machine checks";
	if (!get_msr(fd, MSR_MCG_STATUS, &status) || (status & MCG_MCIP))
		return "the guest has a machine check in progress";
	if ((cap & MCG_CTL_P) && (!get_msr(fd, MSR_MCG_CTL, &control) || ~control))
		return "the guest has masked machine checks";
	if (!get_msr(fd, MSR_MCI_CTL(bank), &control) || ~control)
		return "the guest has masked the bank";
	return NULL;
}

/* A machine check that an Intel CPU does not report as local is for all CPUs. */
static bool is_local(int fd)
{
	uint64_t cap, control;

	return get_msr(fd, MSR_MCG_CAP, &cap) && (cap & MCG_LMCE_P) &&
	       get_msr(fd, MSR_MCG_EXT_CTL, &control) && (control & MCG_LMCE_EN);
}

/* Each vCPU's own thread injects: while one runs, KVM makes others wait for it. */
static void tell_others(struct vcpu *self)
{
	struct vcpu *each;

	pthread_mutex_lock(&lock);
	for (each = vcpus; each; each = each->next) {
		if (each == self)
			continue;
		atomic_store(&each->check_others, true);
		/* QEMU's SIG_IPI: its handler sees to it that KVM_RUN returns. */
		syscall(SYS_tgkill, getpid(), each->thread, SIGUSR1);
	}
	pthread_mutex_unlock(&lock);
}

static void check_with_others(struct vcpu *self)
{
	struct kvm_x86_mce mce = {
		.bank = BANK_OTHERS, .status = STATUS_OTHERS, .mcg_status = MCG_MCIP | MCG_RIPV,
	};
	const char *why = why_no_check(self->fd, BANK_OTHERS, false);

	if (!why && call(self->fd, KVM_X86_SET_MCE, &mce))
		why = "KVM_X86_SET_MCE failed";
	if (why)
		note(PASSED, ", \"why\": \"another vCPU's: %s\"", why);
	else
		note(INJECTED, ", \"others\": true");
}

/* Returns what KVM_RUN is to return. */
static int inject(struct vcpu *self, const struct memory_fault *fault)
{
	bool amd = is_amd(self->fd), local = !amd && is_local(self->fd);
	struct kvm_x86_mce mce = {
		.bank = BANK,
		.status = amd ? STATUS_AMD : STATUS_INTEL,
		.mcg_status = MCG_MCIP | MCG_RIPV | MCG_EIPV | (local ? MCG_LMCE : 0),
		.addr = fault->gpa,
		.misc = MISC,
	};
	const char *why = why_no_check(self->fd, BANK, amd);

	if (!why && call(self->fd, KVM_X86_SET_MCE, &mce))
		why = "KVM_X86_SET_MCE failed";
	if (why) {
		note(PASSED, ", \"gpa\": %llu, \"flags\": %llu, \"why\": \"%s\"",
		     (unsigned long long)fault->gpa, (unsigned long long)fault->flags, why);
		errno = EFAULT;
		return -1;
	}
	note(INJECTED, ", \"gpa\": %llu, \"flags\": %llu, \"vendor\": \"%s\"",
	     (unsigned long long)fault->gpa, (unsigned long long)fault->flags,
	     amd ? "amd" : "intel");
	if (!amd && !local)
		tell_others(self);
	errno = EINTR;	/* QEMU looks for signals, and enters the guest again */
	return -1;
}

/* --- a vCPU that is kept out of the guest ------------------------------------------------- */

static int hold(struct vcpu *self, const struct memory_fault *fault)
{
	/*
	 * The pause is the vCPU's and not the page's: the guest may run another
	 * task between two tries, and a crowd on many pages would never wait long.
	 */
	if (self->held == NOBODY)
		self->pause = FIRST_PAUSE / 2;
	if (self->held != fault->gpa) {
		self->held = fault->gpa;
		self->tries = 0;
	}
	self->tries++;
	if (!(self->tries & (self->tries - 1)))
		note(HELD, ", \"gpa\": %llu, \"flags\": %llu, \"tries\": %llu",
		     (unsigned long long)fault->gpa, (unsigned long long)fault->flags,
		     (unsigned long long)self->tries);
	self->pause = 2 * self->pause < LONGEST_PAUSE ? 2 * self->pause : LONGEST_PAUSE;
	self->again = now() + self->pause;
	errno = EINTR;
	return -1;
}

/*
 * Wait until it is time to try again; false if QEMU wants something first.
 * Signals are blocked between looking and waiting, or one that comes then would
 * not end the wait.
 */
static bool wait_for_the_next_try(struct vcpu *self)
{
	int64_t left = self->again - now();
	struct timespec time = { left / 1000000000LL, left % 1000000000LL };
	sigset_t all, usual;
	bool free;

	if (left <= 0)
		return true;
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &usual);
	free = !__atomic_load_n(&self->run->immediate_exit, __ATOMIC_ACQUIRE) &&
	       ppoll(NULL, 0, &time, &usual) == 0;
	pthread_sigmask(SIG_SETMASK, &usual, NULL);
	return free;
}

/* An exit of any other kind: the guest has gone on. An interrupted one says nothing. */
static void look_for_release(struct vcpu *self, long result)
{
	if (self->held == NOBODY || (result < 0 && (errno == EINTR || errno == EAGAIN)))
		return;
	note(RELEASED, ", \"gpa\": %llu, \"tries\": %llu", (unsigned long long)self->held,
	     (unsigned long long)self->tries);
	self->held = NOBODY;
}

/* --- KVM_RUN ------------------------------------------------------------------------------ */

/* QEMU has a thread for each vCPU, and only that one runs it. */
static struct vcpu *this_vcpu(int fd)
{
	if (mine && mine->fd == fd)
		return mine;
	mine = calloc(1, sizeof(*mine));
	if (!mine)
		refuse("no memory for a vCPU");
	mine->fd = fd;
	mine->thread = syscall(SYS_gettid);
	mine->held = NOBODY;
	mine->run = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mine->run == MAP_FAILED)
		refuse("a vCPU's struct kvm_run cannot be mapped");
	pthread_mutex_lock(&lock);
	mine->next = vcpus;
	vcpus = mine;
	pthread_mutex_unlock(&lock);
	return mine;
}

static long run_vcpu(struct vcpu *self, void *argument)
{
	struct memory_fault fault;
	long result;

	if (atomic_exchange(&self->check_others, false))
		check_with_others(self);
	if (self->held != NOBODY && !wait_for_the_next_try(self)) {
		errno = EINTR;
		return -1;
	}
	result = call(self->fd, KVM_RUN, argument);
	if (result < 0 && errno == EFAULT && self->run->exit_reason == EXIT_MEMORY_FAULT) {
		memcpy(&fault, self->run->padding, sizeof(fault));
		if (fault.flags & ~FLAGS_ACCESS)
			return result;
		if (in_a_slot(fault.gpa))
			return inject_policy ? inject(self, &fault) : hold(self, &fault);
		note(PASSED, ", \"gpa\": %llu, \"why\": \"no memory slot is there\"",
		     (unsigned long long)fault.gpa);
		errno = EFAULT;
	}
	look_for_release(self, result);
	return result;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list arguments;
	void *argument;
	long result;

	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	if (request == KVM_RUN)
		return run_vcpu(this_vcpu(fd), argument);
	result = call(fd, request, argument);
	if (result >= 0 && request == KVM_CREATE_VM)
		enable_exits(result);
	if (!result && (request == KVM_SET_USER_MEMORY_REGION ||
			request == SET_USER_MEMORY_REGION2))
		remember_slot(argument);
	return result;
}
