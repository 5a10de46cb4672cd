// SPDX-License-Identifier: GPL-2.0
/*
 * Lets the framework of a new kernel's selftests run on a kernel before 6.8.
 *
 * Not for the kernel's tree, where tests and kernel are of the same version.
 * The framework skips every test without KVM_SET_USER_MEMORY_REGION2, of which
 * it needs nothing that the older ioctl does not have unless there is a
 * guest_memfd.  Linked with -Wl,--wrap=ioctl.
 */
#include <errno.h>
#include <stdarg.h>
#include <sys/ioctl.h>

#include <linux/kvm.h>

int __real_ioctl(int fd, unsigned long request, ...);

static int set_memory_region(int fd, const struct kvm_userspace_memory_region2 *new)
{
	struct kvm_userspace_memory_region old = {
		.slot = new->slot,
		.flags = new->flags,
		.guest_phys_addr = new->guest_phys_addr,
		.memory_size = new->memory_size,
		.userspace_addr = new->userspace_addr,
	};

	return __real_ioctl(fd, KVM_SET_USER_MEMORY_REGION, &old);
}

int __wrap_ioctl(int fd, unsigned long request, ...)
{
	va_list words;
	void *arg;
	int ret;

	va_start(words, request);
	arg = va_arg(words, void *);
	va_end(words);

	ret = __real_ioctl(fd, request, arg);
	if (request == KVM_CHECK_EXTENSION && (unsigned long)arg == KVM_CAP_USER_MEMORY2)
		return 1;
	if (request == KVM_SET_USER_MEMORY_REGION2 && ret < 0 && errno == ENOTTY)
		return set_memory_region(fd, arg);
	return ret;
}
