"""Memory: a setting of the allocator that keeps freed memory, and offloading of networks block by block."""
