"""Who may do what: roles by table, the facilities and emergencies that narrow a user, and the policies made of them."""
