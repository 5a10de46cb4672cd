"""The virtual machine whose task touches memory."""
