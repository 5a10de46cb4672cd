"""An independent witness: a KVM selftest of our own, run beside hostfault's verdicts.

The selftest (kernels/selftest) needs neither QEMU nor a guest kernel, and shares no code with
the rest: where both see the same kernel do the same, two instruments agree.
"""
