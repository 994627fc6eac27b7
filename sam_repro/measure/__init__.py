"""What training does and costs."""
