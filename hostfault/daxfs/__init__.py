"""A virtiofs back-end with a DAX window, for an unmodified QEMU.

::

    QEMU  <-- vhost-user socket -->  device      what the front-end asks, rings, the DAX window
    guest <----- virtqueues ------>  device  ->  session  ->  operations on the shared directory

=============  ==============================================================================
wire           frozen dataclasses that know their own layout in bytes
vhost_user     vhost-user messages and the sockets that carry them
memory         the guest's memory, mapped and bounds-checked
virtqueue      split virtqueues
device         the vhost-user device: features, memory, rings, the loop
pace           how soon to look into the rings, where the driver does not notify
window         which part of which file is mapped where in the DAX window
fuse           FUSE messages
share          what every operation works on: nodes, handles, window
nodes          inodes and handles that the guest knows of
session        one FUSE session: from INIT to DESTROY, opcode to operation
names          operations on names: lookup, create, rename, unlink, ...
files          operations on files: open, read, write, attributes, mappings, ...
directories    reading directories
libc           system calls that Python does not wrap
eventlog       the log: JSON lines, bounded
=============  ==============================================================================

The guest is not trusted: whatever it puts into a ring or a request ends in an error reply or
in a ring that is no longer served, with a reason in the log. QEMU is trusted with the daemon's
life, not with its memory: a message that breaks the protocol ends the connection.
"""
