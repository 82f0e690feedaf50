"""The room of recurring work and of the allocator: flows that an operator schedules, policies that set replicas."""
