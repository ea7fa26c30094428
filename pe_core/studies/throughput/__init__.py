"""How fast is training?"""
