// SPDX-License-Identifier: GPL-2.0
/*
 * Test that KVM_RUN comes to an end when the host cannot back a page of guest
 * memory, i.e. that KVM does not retry the fault for ever.
 *
 * A page of a memslot can vanish, or never come into being: its file was
 * truncated, or lies on a file system that is full.  A touch by userspace then
 * gets SIGBUS.  A touch by the guest must end KVM_RUN with -EFAULT, whether or
 * not KVM can look for the page asynchronously, as nobody learns of the error
 * otherwise while the vCPU burns a core.
 *
 * What tells an endless loop from a slow one are attempts, not time: the guest
 * stands on the one instruction that touches the page, userspace itself cannot
 * touch the page, KVM_RUN has not returned, and the vCPU's stats count fault
 * after fault that was not resolved.  Where async page faults are delivered to
 * the guest, the guest's own count of them has to agree.
 *
 * The same is done with a page that is there and with one that is late (held
 * back with userfaultfd), to prove that the test can tell the difference.
 */
#include <asm/kvm_para.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm_para.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "apic.h"
#include "kselftest.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"

#define TEST_SLOT	10
#define TEST_ADDR	0xc0000000ul	/* both in the guest's virtual and physical space */
#define NR_PAGES	16
#define TOUCHED_PAGE	8
#define TOUCHED_ADDR	(TEST_ADDR + TOUCHED_PAGE * PAGE_SIZE)
#define TMPFS_PAGES	4		/* room for the page that is touched first, no more */

#define VALUE_HOST	0x5a
#define VALUE_GUEST	0xa5

#define APF_VECTOR	0xf3
#define USER_CS		0x28
#define USER_SS		0x30

/* An endless loop: that many failed attempts, in that many samples in a row. */
#define SPIN_ATTEMPTS	64
#define SPIN_SAMPLES	3

/* Nothing below is proof of anything; it bounds how long the test takes. */
#define DEADLINE_MS	20000
#define QUIET_MS	5000		/* that long without an attempt is a stall */
#define LATE_MS		200		/* for how long a late page is held back */

enum backing {
	PRESENT,	/* a hole in a memfd: the host makes the page */
	LATE,		/* the same, but the page takes its time */
	ZERO,		/* a memfd that is truncated to nothing */
	MIDDLE,		/* a memfd that is truncated to just below the page */
	FULL,		/* a hole in a file on a tmpfs that is full */
	NR_BACKINGS,
};

enum mode {
	APF_USER,	/* async page faults on, CPL 3 */
	APF_KERNEL,	/* async page faults on, send-always, CPL 0 */
	NO_APF,		/* async page faults off, CPL 3 */
	IRQS_OFF,	/* as APF_KERNEL, with interrupts disabled: KVM has to wait */
	NR_MODES,
};

enum verdict {
	OK,		/* the access got what it must */
	EXIT,		/* KVM_RUN failed, and the page is why */
	SPIN,		/* failed attempts without end */
	STALL,		/* no attempts any more, and no end either */
	STALE,		/* the access went through, though there is no page */
	OTHER,
};

static const char * const backing_names[] = { "present", "late", "zero", "middle", "full" };
static const char * const mode_names[] = { "apf-user", "apf-kernel", "no-apf", "irqs-off" };
static const char * const verdict_names[] = { "ok", "exit", "spin", "stall", "stale", "other" };

enum step {
	STEP_BEGIN,
	STEP_TOUCHING,
	STEP_DONE,
};

/* Lives in the guest.  One page, as KVM and the host look at it through physical addresses. */
static struct guest_state {
	struct kvm_vcpu_pv_apf_data apf;	/* must be aligned to 64 bytes */
	u64 mode;
	u64 store;
	u64 first_addr;
	u64 apf_gpa;
	u64 user_stack;
	u64 step;
	u64 value;
	u64 touch_rip;
	u64 not_present;
	u64 ready;
	u64 ready_token;
	u64 strangers;		/* "page not present" of another instruction */
} guest __aligned(PAGE_SIZE);

/*
 * Touch the page with exactly one instruction, whose address is known.  From
 * then on, until the step is STEP_DONE, the guest cannot be anywhere else.
 */
#define GUEST_TOUCH(insn, value)					\
({									\
	asm volatile("lea 1f(%%rip), %%rcx\n\t"				\
		     "mov %%rcx, %[rip]\n\t"				\
		     "movq %[touching], %[step]\n\t"			\
		     "1: " insn						\
		     : [rip] "=m" (guest.touch_rip), "+a" (value),	\
		       [step] "=m" (guest.step)				\
		     : [touching] "i" (STEP_TOUCHING),			\
		       [page] "d" (TOUCHED_ADDR)			\
		     : "rcx", "memory");				\
})

static void guest_touch(void)
{
	u64 value = VALUE_GUEST;

	if (guest.store)
		GUEST_TOUCH("movb %%al, (%[page])", value);
	else
		GUEST_TOUCH("movb (%[page]), %%al", value);

	WRITE_ONCE(guest.value, value & 0xff);
	WRITE_ONCE(guest.step, STEP_DONE);

	/* A ucall is an access to a port, which is not for user mode: let the kernel do it. */
	asm volatile("ud2");
}

static void guest_ud_handler(struct ex_regs *regs)
{
	GUEST_DONE();
}

static void guest_enter_user_mode(void)
{
	asm volatile("pushq %[ss]\n\t"
		     "pushq %[stack]\n\t"
		     "pushq %[flags]\n\t"
		     "pushq %[cs]\n\t"
		     "pushq %[start]\n\t"
		     "iretq"
		     : : [ss] "i" (USER_SS | 3), [stack] "r" (guest.user_stack),
		       [flags] "i" (X86_EFLAGS_FIXED | X86_EFLAGS_IF),
		       [cs] "i" (USER_CS | 3), [start] "r" (guest_touch)
		     : "memory");
}

static void guest_code(void)
{
	x2apic_enable();

	if (guest.mode != NO_APF) {
		u64 flags = KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT;

		if (guest.mode != APF_USER)
			flags |= KVM_ASYNC_PF_SEND_ALWAYS;
		wrmsr(MSR_KVM_ASYNC_PF_INT, APF_VECTOR);
		wrmsr(MSR_KVM_ASYNC_PF_EN, guest.apf_gpa | flags);
	}

	/* What was there for the first touch may be gone for the second. */
	GUEST_ASSERT_EQ(READ_ONCE(*(u8 *)guest.first_addr), VALUE_HOST);
	GUEST_SYNC(STEP_BEGIN);

	if (guest.mode == APF_USER || guest.mode == NO_APF)
		guest_enter_user_mode();

	if (guest.mode == APF_KERNEL)
		sti_nop();
	guest_touch();
}

/* "Page not present": do what a kernel does for a task, i.e. wait until it is ready. */
static void guest_pf_handler(struct ex_regs *regs)
{
	u64 token = get_cr2();

	__GUEST_ASSERT(READ_ONCE(guest.apf.flags) & KVM_PV_REASON_PAGE_NOT_PRESENT,
		       "Page fault of the guest's own: address 0x%lx, RIP 0x%lx",
		       token, regs->rip);

	WRITE_ONCE(guest.apf.flags, 0);
	if (regs->rip != guest.touch_rip)
		WRITE_ONCE(guest.strangers, guest.strangers + 1);
	WRITE_ONCE(guest.not_present, guest.not_present + 1);

	while (READ_ONCE(guest.ready_token) != token) {
		safe_halt();
		cli();
	}
	WRITE_ONCE(guest.ready_token, 0);
}

static void guest_ready_handler(struct ex_regs *regs)
{
	WRITE_ONCE(guest.ready_token, READ_ONCE(guest.apf.token));
	WRITE_ONCE(guest.ready, guest.ready + 1);
	WRITE_ONCE(guest.apf.token, 0);
	wrmsr(MSR_KVM_ASYNC_PF_ACK, 1);
	x2apic_write_reg(APIC_EOI, 0);
}

struct test {
	enum backing backing;
	enum mode mode;
	bool store;
	char name[40];

	int fd;
	int filler;		/* takes up the room of a full tmpfs */
	int uffd;		/* holds a late page back */
	u64 asked_at;		/* when KVM asked for it, in ms; 0: not yet */
	u8 *mem;		/* the memslot */
	u8 *alias;		/* userspace's own view of the same file */

	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	struct guest_state *guest;
	pthread_t thread;

	/* Written by the vCPU's thread. */
	u64 nr_runs;		/* returns of KVM_RUN */
	u64 nr_samples;		/* of them, those that were asked for */
	u64 rip;		/* at the last return */
	int ret;
	int err;
	bool ended;

	/* Written by the main thread. */
	bool running;		/* there is a thread, which may have come to its end */
	bool stop;
};

/* What the stats of a vCPU say about its faults so far. */
struct faults {
	u64 taken;
	u64 failed;
};

static __thread struct kvm_run *this_run;

static void kick_handler(int signum)
{
	if (this_run)
		WRITE_ONCE(this_run->immediate_exit, 1);
}

static u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ull + ts.tv_nsec / 1000000;
}

static struct faults read_faults(struct kvm_vcpu *vcpu)
{
	struct faults faults;
	u64 resolved;

	/* Resolved faults first: then at worst one is missed, and none is taken for failed. */
	resolved = vcpu_get_stat(vcpu, pf_fixed) + vcpu_get_stat(vcpu, pf_spurious) +
		   vcpu_get_stat(vcpu, pf_emulate) + vcpu_get_stat(vcpu, pf_fast);
	faults.taken = vcpu_get_stat(vcpu, pf_taken);
	faults.failed = faults.taken > resolved ? faults.taken - resolved : 0;
	return faults;
}

static void map_file(struct test *t)
{
	t->mem = kvm_mmap(NR_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd);
	t->alias = kvm_mmap(NR_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, t->fd);
}

/* A file on a tmpfs of its own, that goes away with the last descriptor. */
static bool open_small_tmpfs(struct test *t)
{
	char dir[] = "/tmp/unbacked_page_test.XXXXXX";
	char options[32];
	int dirfd;

	TEST_ASSERT(mkdtemp(dir), "mkdtemp() failed, errno: %d", errno);
	snprintf(options, sizeof(options), "size=%u", (unsigned int)(TMPFS_PAGES * PAGE_SIZE));
	if (mount("tmpfs", dir, "tmpfs", 0, options)) {
		TEST_ASSERT(errno == EPERM, "mount() failed, errno: %d", errno);
		rmdir(dir);
		return false;
	}

	dirfd = open(dir, O_PATH | O_DIRECTORY);
	t->fd = openat(dirfd, "memory", O_RDWR | O_CREAT, 0600);
	t->filler = openat(dirfd, "filler", O_RDWR | O_CREAT, 0600);
	TEST_ASSERT(t->fd >= 0 && t->filler >= 0, "openat() failed, errno: %d", errno);
	close(dirfd);

	TEST_ASSERT(!umount2(dir, MNT_DETACH), "umount2() failed, errno: %d", errno);
	rmdir(dir);
	return true;
}

static void hold_page_back(struct test *t)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MISSING_SHMEM };
	struct uffdio_register reg = {
		.range = { (u64)t->mem + TOUCHED_PAGE * PAGE_SIZE, PAGE_SIZE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};

	t->uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (t->uffd < 0)
		return;
	TEST_ASSERT(!ioctl(t->uffd, UFFDIO_API, &api), "UFFDIO_API failed, errno: %d", errno);
	TEST_ASSERT(!ioctl(t->uffd, UFFDIO_REGISTER, &reg),
		    "UFFDIO_REGISTER failed, errno: %d", errno);
}

/* Returns what is missing to make such memory, or NULL. */
static const char *create_backing(struct test *t)
{
	t->filler = -1;
	t->uffd = -1;

	if (t->backing == FULL) {
		if (!open_small_tmpfs(t))
			return "may not mount a tmpfs";
	} else {
		t->fd = kvm_memfd_alloc(NR_PAGES * PAGE_SIZE, false);
	}
	TEST_ASSERT(!ftruncate(t->fd, NR_PAGES * PAGE_SIZE), "ftruncate() failed");
	map_file(t);

	if (t->backing == LATE) {
		hold_page_back(t);
		if (t->uffd < 0)
			return "may not use userfaultfd";
	}
	return NULL;
}

static void destroy_backing(struct test *t)
{
	if (t->mem) {
		kvm_munmap(t->mem, NR_PAGES * PAGE_SIZE);
		kvm_munmap(t->alias, NR_PAGES * PAGE_SIZE);
	}
	if (t->uffd >= 0)
		close(t->uffd);
	if (t->filler >= 0)
		close(t->filler);
	if (t->fd > 0)
		close(t->fd);
}

static bool can_vanish(struct test *t)
{
	return t->backing == ZERO || t->backing == MIDDLE;
}

static bool is_missing(struct test *t)
{
	return can_vanish(t) || t->backing == FULL;
}

/* Prove that userspace cannot have the page either. */
static void assert_page_gone(struct test *t)
{
	TEST_EXPECT_SIGBUS(READ_ONCE(t->alias[TOUCHED_PAGE * PAGE_SIZE]));
}

static void take_page_away(struct test *t)
{
	char page[PAGE_SIZE] = {};

	if (can_vanish(t))
		TEST_ASSERT(!ftruncate(t->fd, t->backing == ZERO ? 0 : TOUCHED_PAGE * PAGE_SIZE),
			    "ftruncate() failed, errno: %d", errno);

	if (t->backing == FULL) {
		while (write(t->filler, page, sizeof(page)) == sizeof(page))
			;
		TEST_ASSERT(errno == ENOSPC, "Filling the tmpfs failed, errno: %d", errno);
	}

	if (is_missing(t))
		assert_page_gone(t);
}

static void give_page_back(struct test *t)
{
	if (t->backing == FULL)
		TEST_ASSERT(!ftruncate(t->filler, 0), "ftruncate() failed, errno: %d", errno);
	else
		TEST_ASSERT(!ftruncate(t->fd, NR_PAGES * PAGE_SIZE),
			    "ftruncate() failed, errno: %d", errno);
}

/* Page tables all the way down: nothing in this guest needs to be kept from its user mode. */
static void allow_user_mode(struct kvm_vm *vm, u64 table_gpa, int level)
{
	u64 *table = addr_gpa2hva(vm, table_gpa);
	int i;

	for (i = 0; i < PTES_PER_MIN_PAGE; i++) {
		if (!is_present_pte(&vm->mmu, &table[i]))
			continue;
		table[i] |= PTE_USER_MASK(&vm->mmu);
		if (level > PG_LEVEL_4K && !is_huge_pte(&vm->mmu, &table[i]))
			allow_user_mode(vm, PTE_GET_PA(table[i]), level - 1);
	}
}

static void prepare_user_mode(struct test *t)
{
	u64 *gdt = addr_gva2hva(t->vm, t->vm->arch.gdt);
	void *tss = addr_gva2hva(t->vm, t->vm->arch.tss);
	u64 kernel_stack = vm_alloc_page(t->vm) + PAGE_SIZE;

	gdt[USER_CS / 8] = 0x00affb000000ffffull;	/* 64-bit code, DPL 3 */
	gdt[USER_SS / 8] = 0x00cff3000000ffffull;	/* data, DPL 3 */
	memcpy(tss + 4, &kernel_stack, sizeof(kernel_stack));	/* RSP0 */

	t->guest->user_stack = vm_alloc_page(t->vm) + PAGE_SIZE - 8;
	allow_user_mode(t->vm, t->vm->mmu.pgd, t->vm->mmu.pgtable_levels);
}

static void create_vm(struct test *t)
{
	int first_page = can_vanish(t) ? TOUCHED_PAGE : 0;

	t->vm = vm_create_with_one_vcpu(&t->vcpu, guest_code);
	vm_set_user_memory_region(t->vm, TEST_SLOT, 0, TEST_ADDR, NR_PAGES * PAGE_SIZE, t->mem);
	virt_map(t->vm, TEST_ADDR, TEST_ADDR, NR_PAGES);
	vm_install_exception_handler(t->vm, UD_VECTOR, guest_ud_handler);
	vm_install_exception_handler(t->vm, PF_VECTOR, guest_pf_handler);
	vm_install_exception_handler(t->vm, APF_VECTOR, guest_ready_handler);

	t->alias[first_page * PAGE_SIZE] = VALUE_HOST;

	t->guest = addr_gva2hva(t->vm, (gva_t)&guest);
	t->guest->mode = t->mode;
	t->guest->store = t->store;
	t->guest->first_addr = TEST_ADDR + first_page * PAGE_SIZE;
	t->guest->apf_gpa = addr_gva2gpa(t->vm, (gva_t)&guest.apf);
	prepare_user_mode(t);
}

/* KVM_RUN until it ends for another reason than to be sampled. */
static void *vcpu_thread(void *arg)
{
	struct test *t = arg;
	struct kvm_regs regs;
	int ret, err;

	this_run = t->vcpu->run;
	do {
		ret = __vcpu_run(t->vcpu);
		err = ret ? errno : 0;
		vcpu_regs_get(t->vcpu, &regs);
		WRITE_ONCE(t->rip, regs.rip);
		WRITE_ONCE(t->nr_runs, t->nr_runs + 1);
		if (err != EINTR)
			break;
		WRITE_ONCE(t->vcpu->run->immediate_exit, 0);
		__atomic_store_n(&t->nr_samples, t->nr_samples + 1, __ATOMIC_RELEASE);
	} while (!READ_ONCE(t->stop));

	t->ret = ret;
	t->err = err;
	__atomic_store_n(&t->ended, true, __ATOMIC_RELEASE);
	return NULL;
}

static bool has_ended(struct test *t)
{
	return __atomic_load_n(&t->ended, __ATOMIC_ACQUIRE);
}

static void start_vcpu(struct test *t)
{
	t->ended = false;
	t->stop = false;
	TEST_ASSERT(!pthread_create(&t->thread, NULL, vcpu_thread, t), "pthread_create() failed");
	t->running = true;
}

static void join_vcpu(struct test *t)
{
	pthread_join(t->thread, NULL);
	t->running = false;
}

/* Make KVM_RUN return, and wait until it has. */
static void sample_vcpu(struct test *t)
{
	u64 before = __atomic_load_n(&t->nr_samples, __ATOMIC_ACQUIRE);
	u64 begin = now_ms();

	pthread_kill(t->thread, SIGUSR1);
	while (!has_ended(t) && __atomic_load_n(&t->nr_samples, __ATOMIC_ACQUIRE) == before) {
		TEST_ASSERT(now_ms() - begin < DEADLINE_MS,
			    "%s: a signal does not end KVM_RUN", t->name);
		usleep(100);
	}
}

static void stop_vcpu(struct test *t)
{
	WRITE_ONCE(t->stop, true);
	if (!has_ended(t))
		sample_vcpu(t);
	join_vcpu(t);
}

static u64 guest_step(struct test *t)
{
	return READ_ONCE(t->guest->step);
}

/* What KVM_RUN's end says about the access. */
static enum verdict judge_end(struct test *t)
{
	struct kvm_run *run = t->vcpu->run;
	struct ucall uc;

	if (!t->ret) {
		if (run->exit_reason != KVM_EXIT_IO)
			return OTHER;
		if (get_ucall(t->vcpu, &uc) == UCALL_ABORT)
			REPORT_GUEST_ASSERT(uc);
		if (uc.cmd != UCALL_DONE || guest_step(t) != STEP_DONE)
			return OTHER;
		return OK;
	}

	if (t->err != EFAULT || guest_step(t) != STEP_TOUCHING)
		return OTHER;
	/* The error has to be about this page: by its address, or by the instruction. */
	if (run->exit_reason == KVM_EXIT_MEMORY_FAULT)
		return run->memory_fault.gpa / PAGE_SIZE == TOUCHED_ADDR / PAGE_SIZE ? EXIT : OTHER;
	return t->rip == t->guest->touch_rip ? EXIT : OTHER;
}

/* Serve a fault on a page that is held back: once it has waited long enough. */
static void serve_late_page(struct test *t)
{
	struct uffdio_copy copy = {};
	struct uffd_msg msg;
	char page[PAGE_SIZE];

	if (t->uffd < 0)
		return;
	if (read(t->uffd, &msg, sizeof(msg)) == sizeof(msg))
		t->asked_at = now_ms();
	if (!t->asked_at || now_ms() - t->asked_at < LATE_MS)
		return;

	memset(page, VALUE_HOST, sizeof(page));
	copy.dst = (u64)t->mem + TOUCHED_PAGE * PAGE_SIZE;
	copy.src = (u64)page;
	copy.len = PAGE_SIZE;
	TEST_ASSERT(!ioctl(t->uffd, UFFDIO_COPY, &copy), "UFFDIO_COPY failed, errno: %d", errno);
	close(t->uffd);
	t->uffd = -1;
}

static bool apf_is_delivered(struct test *t)
{
	return t->mode == APF_USER || t->mode == APF_KERNEL;
}

/* One more sample: whether the vCPU stands where it stood. */
static bool stands_still(struct test *t)
{
	sample_vcpu(t);
	if (has_ended(t) || guest_step(t) != STEP_TOUCHING || READ_ONCE(t->guest->strangers))
		return false;
	/* Otherwise it may be in its handlers, which have looked where they came from. */
	return apf_is_delivered(t) || READ_ONCE(t->rip) == t->guest->touch_rip;
}

/*
 * Watch the vCPU until it is clear what becomes of the access.  The vCPU has
 * ended, or is still running (SPIN and STALL).
 */
static enum verdict watch_access(struct test *t)
{
	u64 last_failed = read_faults(t->vcpu).failed, failed;
	u64 last_guest = READ_ONCE(t->guest->not_present), seen;
	u64 begin = now_ms(), quiet_since = begin;
	u64 quiet_failed = last_failed;
	int nr_samples = 0;

	while (!has_ended(t)) {
		usleep(500);
		serve_late_page(t);

		failed = read_faults(t->vcpu).failed;
		if (failed != quiet_failed) {
			quiet_failed = failed;
			quiet_since = now_ms();
		}
		if (now_ms() - quiet_since > QUIET_MS)
			return STALL;
		if (now_ms() - begin > DEADLINE_MS)
			return OTHER;

		seen = READ_ONCE(t->guest->not_present);
		if (failed - last_failed < SPIN_ATTEMPTS)
			continue;
		if (apf_is_delivered(t) && seen - last_guest < SPIN_ATTEMPTS)
			continue;

		nr_samples = stands_still(t) ? nr_samples + 1 : 0;
		last_failed = failed;
		last_guest = seen;
		if (nr_samples == SPIN_SAMPLES) {
			if (is_missing(t))
				assert_page_gone(t);
			return SPIN;
		}
	}

	join_vcpu(t);
	return judge_end(t);
}

/* The same once more, of a vCPU that may have ended. */
static enum verdict watch_again(struct test *t)
{
	if (!t->running)
		start_vcpu(t);
	return watch_access(t);
}

static void run_to_first_touch(struct test *t)
{
	struct ucall uc;

	vcpu_run(t->vcpu);
	switch (get_ucall(t->vcpu, &uc)) {
	case UCALL_SYNC:
		break;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
		break;
	default:
		TEST_FAIL("%s: the guest did not get to the first touch", t->name);
	}
	t->nr_runs = 0;
	t->nr_samples = 0;
}

/* The access went through: to the right bytes? */
static enum verdict check_value(struct test *t)
{
	u8 wanted = t->backing == LATE ? VALUE_HOST : 0;

	if (is_missing(t))
		return STALE;
	if (t->store)
		return t->alias[TOUCHED_PAGE * PAGE_SIZE] == VALUE_GUEST ? OK : OTHER;
	return t->guest->value == wanted ? OK : OTHER;
}

static void check_delivery(struct test *t)
{
	u64 seen = t->guest->not_present;

	/* Only a page that is late shows whether the mode is what its name says. */
	if (t->backing != LATE)
		return;
	TEST_ASSERT(apf_is_delivered(t) == !!seen,
		    "%s: %lu async page faults were delivered", t->name, seen);
}

static void run_test(struct test *t)
{
	enum verdict verdict, again = OTHER, undone = OTHER;
	struct faults before, after;
	const char *lack;
	u64 runs, samples, seen;

	lack = create_backing(t);
	if (lack) {
		ksft_test_result_skip("%s: %s\n", t->name, lack);
		destroy_backing(t);
		return;
	}

	create_vm(t);
	run_to_first_touch(t);
	take_page_away(t);

	before = read_faults(t->vcpu);
	start_vcpu(t);
	verdict = watch_access(t);
	after = read_faults(t->vcpu);
	if (verdict == OK) {
		verdict = check_value(t);
		check_delivery(t);
	}
	runs = t->nr_runs;
	samples = t->nr_samples;
	seen = t->guest->not_present;

	ksft_print_msg("%s: verdict=%s errno=%d exit=%s rip=%s\n",
		       t->name, verdict_names[verdict], t->running ? 0 : t->err,
		       t->running ? "none" : exit_reason_str(t->vcpu->run->exit_reason),
		       t->rip == t->guest->touch_rip ? "touch" : "elsewhere");
	ksft_print_msg("%s: runs=%lu samples=%lu attempts=%lu failed=%lu apf=%lu\n",
		       t->name, runs, samples, after.taken - before.taken,
		       after.failed - before.failed, seen);

	/* For the record: is the error there to stay, and does it end with its cause? */
	if (is_missing(t) && (verdict == EXIT || verdict == SPIN)) {
		if (verdict == EXIT)
			again = watch_again(t);
		give_page_back(t);
		undone = watch_again(t);
		ksft_print_msg("%s: again=%s undone=%s\n", t->name,
			       verdict == EXIT ? verdict_names[again] : "none",
			       verdict_names[undone]);
	}
	if (t->running)
		stop_vcpu(t);

	ksft_test_result(verdict == (is_missing(t) ? EXIT : OK), "%s\n", t->name);

	kvm_vm_free(t->vm);
	destroy_backing(t);
}

static bool is_wanted(const char *name, int argc, char *argv[])
{
	int i;

	for (i = optind; i < argc; i++) {
		if (!strncmp(name, argv[i], strlen(argv[i])))
			return true;
	}
	return optind == argc;
}

static void help(const char *name)
{
	printf("usage: %s [-h] [PREFIX...]\n", name);
	printf(" -h: print this, and the names of all tests\n");
	printf(" PREFIX: run only the tests whose names begin like that\n");
}

#define NR_TESTS	(NR_BACKINGS * NR_MODES * 2)

int main(int argc, char *argv[])
{
	static struct test tests[NR_TESTS];
	struct sigaction action = { .sa_handler = kick_handler };
	int i, opt, nr_wanted = 0;

	for (i = 0; i < NR_TESTS; i++) {
		struct test *t = &tests[i];

		t->backing = i / (NR_MODES * 2);
		t->mode = i / 2 % NR_MODES;
		t->store = i % 2;
		snprintf(t->name, sizeof(t->name), "%s.%s.%s", backing_names[t->backing],
			 mode_names[t->mode], t->store ? "store" : "load");
	}

	while ((opt = getopt(argc, argv, "h")) != -1) {
		help(basename(argv[0]));
		for (i = 0; opt == 'h' && i < NR_TESTS; i++)
			printf("  %s\n", tests[i].name);
		exit(opt == 'h' ? 0 : KSFT_FAIL);
	}

	TEST_REQUIRE(kvm_has_cap(KVM_CAP_ASYNC_PF_INT));
	TEST_REQUIRE(kvm_has_cap(KVM_CAP_BINARY_STATS_FD));
	TEST_REQUIRE(kvm_cpu_has(X86_FEATURE_KVM_ASYNC_PF_INT));

	sigaction(SIGUSR1, &action, NULL);

	for (i = 0; i < NR_TESTS; i++)
		nr_wanted += is_wanted(tests[i].name, argc, argv);

	ksft_print_header();
	ksft_set_plan(nr_wanted);

	for (i = 0; i < NR_TESTS; i++) {
		if (is_wanted(tests[i].name, argc, argv))
			run_test(&tests[i]);
	}

	ksft_finished();
}
