// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A VMM and a KVM in one, for images/vmm-policy: it calls ioctl() as QEMU does, the preloaded
 * library calls syscall(), which is ours, and this KVM does what the environment says.
 *
 *   VENDOR       of the guest's CPU (default AuthenticAMD)
 *   MCG_CAP, MCG_STATUS, MCI_CTL, CR4    registers of the guest's, hexadecimal
 *   FLAGS, GPA   of struct kvm_run's memory_fault
 *   PAGES        faults are of so many pages in turns, from GPA on (default 1)
 *   ERRNO        of KVM_RUN (default EFAULT), REASON of the exit (default 39)
 *   FAULTS       so often KVM_RUN fails; then it succeeds
 *   VCPUS        1 or 2
 *   CAPABILITY   whether this KVM knows the capability
 *
 * It says on its standard output what the library does to KVM, and what KVM_RUN returns.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { KVM = 1000, VM, VCPUS_FROM };

static int pages[2];	/* stand for the vCPUs: what is mapped of them is struct kvm_run */
static struct kvm_run *runs[2];
static unsigned long faults;

static uint64_t number(const char *name, uint64_t otherwise)
{
	const char *text = getenv(name);

	return text ? strtoull(text, NULL, 16) : otherwise;
}

static const char *vendor(void)
{
	return getenv("VENDOR") ?: "AuthenticAMD";
}

static long get_msr(struct kvm_msrs *msrs)
{
	struct kvm_msr_entry *entry = msrs->entries;

	switch (entry->index) {
	case 0x179:
		entry->data = number("MCG_CAP", 0x10a);
		return 1;
	case 0x17a:
		entry->data = number("MCG_STATUS", 0);
		return 1;
	case 0x17b:
		entry->data = ~0ULL;
		return 1;
	case 0x4d0:
		entry->data = number("LMCE", 0);
		return 1;
	default:
		entry->data = number("MCI_CTL", ~0ULL);
		return 1;
	}
}

static long run_guest(int which)
{
	struct { uint64_t flags, gpa, size; } fault = {
		number("FLAGS", 0),
		number("GPA", 0x1000) + 0x1000 * (faults % number("PAGES", 1)),
		0x1000,
	};

	if (which || !faults)
		return 0;
	faults--;
	runs[0]->exit_reason = number("REASON", 39);
	memcpy(runs[0]->padding, &fault, sizeof(fault));
	errno = number("ERRNO", EFAULT);
	return -1;
}

static long kvm_ioctl(int fd, unsigned long request, void *argument)
{
	int which = fd == pages[1];

	switch (request) {
	case KVM_CREATE_VM:
		return VM;
	case KVM_CHECK_EXTENSION:
		return number("CAPABILITY", 0);
	case KVM_ENABLE_CAP:
		printf("enabled %u\n", ((struct kvm_enable_cap *)argument)->cap);
		return 0;
	case KVM_SET_USER_MEMORY_REGION:
		return 0;
	case KVM_GET_MSRS:
		return get_msr(argument);
	case KVM_GET_SREGS:
		((struct kvm_sregs *)argument)->cr4 = number("CR4", 0x40);
		return 0;
	case KVM_GET_CPUID2: {
		struct kvm_cpuid2 *cpuid = argument;

		cpuid->nent = 1;
		memset(cpuid->entries, 0, sizeof(*cpuid->entries));
		memcpy(&cpuid->entries->ebx, vendor(), 4);
		memcpy(&cpuid->entries->edx, vendor() + 4, 4);
		memcpy(&cpuid->entries->ecx, vendor() + 8, 4);
		return 0;
	}
	case KVM_X86_SET_MCE: {
		struct kvm_x86_mce *mce = argument;

		printf("vcpu %d: bank %u status %#llx mcg %#llx addr %#llx misc %#llx\n", which,
		       mce->bank, mce->status, mce->mcg_status, mce->addr, mce->misc);
		return 0;
	}
	case KVM_RUN:
		return run_guest(which);
	}
	printf("unknown ioctl %#lx\n", request);
	errno = ENOTTY;
	return -1;
}

/* In place of the C library's. Only what is for this KVM stays here. */
long syscall(long call, ...)
{
	va_list list;
	long words[4];
	int at;

	va_start(list, call);
	for (at = 0; at < 4; at++)
		words[at] = va_arg(list, long);
	va_end(list);
	if (call == SYS_ioctl && words[0] != STDIN_FILENO)
		return kvm_ioctl(words[0], words[1], (void *)words[2]);
	if (call == SYS_gettid)
		return gettid();
	if (call == SYS_tgkill)
		return tgkill(words[0], words[1], words[2]);
	errno = ENOSYS;
	return -1;
}

static void run(int which)
{
	int result = ioctl(pages[which], KVM_RUN, 0), error = errno;

	if (result < 0)
		printf("vcpu %d: KVM_RUN failed with %s\n", which, strerrorname_np(error));
	else
		printf("vcpu %d: KVM_RUN returned\n", which);
}

static void on_kick(int signal)
{
	(void)signal;
}

static pthread_barrier_t told;

static void *second_vcpu(void *unused)
{
	run(1);
	pthread_barrier_wait(&told);	/* now it is known */
	pthread_barrier_wait(&told);	/* the first one has run */
	run(1);
	return unused;
}

int main(void)
{
	struct kvm_userspace_memory_region region = { .memory_size = 0x100000 };
	int vcpus = number("VCPUS", 1), vm, at;
	pthread_t thread;

	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGUSR1, on_kick);
	faults = number("FAULTS", 1);
	for (at = 0; at < vcpus; at++) {
		pages[at] = memfd_create("vcpu", 0);
		if (ftruncate(pages[at], 4096))
			return 1;
		runs[at] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, pages[at], 0);
	}
	vm = ioctl(KVM, KVM_CREATE_VM, 0);
	ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region);
	if (vcpus == 2) {
		pthread_barrier_init(&told, NULL, 2);
		pthread_create(&thread, NULL, second_vcpu, NULL);
		pthread_barrier_wait(&told);
	}
	do
		run(0);
	while (faults);
	if (vcpus == 2) {
		pthread_barrier_wait(&told);
		pthread_join(thread, NULL);
	}
	run(0);
	return 0;
}
