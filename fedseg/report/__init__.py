"""What people look at afterwards: pictures, and pages and tables that open offline."""
