"""Models: get one from anywhere (`load.load`), save it so that it loads again (`save.save`), extend its vocabulary.

Import the modules themselves, `from llamax.models.load import load`: they load torch; this page, `source` and
`fingerprint` do not.
"""
