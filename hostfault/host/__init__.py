"""Where the KVM under test runs."""
