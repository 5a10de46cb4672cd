"""Images: the emulated host's root, its initramfs, and the guest's initramfs."""

from hostfault.image.guest import guest_image
from hostfault.image.host import host_image, host_initramfs

__all__ = ["guest_image", "host_image", "host_initramfs"]
