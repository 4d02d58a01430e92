"""A model file answers: on the command line, over HTTP and on a page. Runs where torch is not installed.

Reading order: ``specs`` (limits), ``inference`` (image files to answers; the library), ``models`` (by name, with
their queues), ``http`` (the server), ``page_files`` (the page, in both forms), ``static_site`` (the page without a
server), ``cli`` (the command ``xserve``).
"""
