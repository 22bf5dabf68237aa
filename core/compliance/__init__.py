"""What compliance asks for beside the audit log: emergencies, sign-offs, disclosures, and copies for clients."""
