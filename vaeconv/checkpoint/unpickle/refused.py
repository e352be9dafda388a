"""Names that do harm in an ordinary unpickler, each with its reason.

Naming a class or function of training code harms nobody, as nothing here is ever run. These are
refused for what the file would do where it is loaded by something else.
"""

from __future__ import annotations

import sys
import unicodedata

# Modules, and single functions or classes; whatever is below one of them counts as it does.
_TABLE = {
    "starts programs": """
        os os2 posix nt subprocess _posixsubprocess _winapi msvcrt commands popen2 pty platform
        multiprocessing _multiprocessing concurrent signal sched webbrowser antigravity turtle
        turtledemo this idlelib venv imaplib mailcap uuid _osx_support _aix_support _pyrepl
        sh pexpect ptyprocess plumbum fabric invoke execnet celery
        torch.multiprocessing torch.distributed.elastic torch.distributed.launch torch.numa
        torch.distributed.launcher torch.distributed.run torch.distributed.rpc
        torch.utils.cpp_extension torch.utils._cpp_extension_versioner torch.utils.hipify
        torch.utils.collect_env torch.utils._get_clean_triton torch.utils._strobelight
        torch._strobelight torch._vendor torch.backends.xeon.run_cpu
    """,
    "runs any code passed to it": """
        builtins __builtin__ __builtins__ future_builtins code codeop runpy timeit trace pdb bdb
        cmd profile cprofile hotshot doctest unittest pydoc rexec asyncio asyncore asynchat
        threading thread dummy_threading dummy_thread queue _queue contextlib atexit tkinter
        _tkinter lib2to3 py_compile compileall compiler pyclbr symtable new symbol parser
        numba cffi jinja2 fire ipython ipykernel ptpython jedi py pytest _pytest nose gevent
        eventlet twisted six numexpr asteval sympy.parsing hydra.utils hydra._internal
        numpy.f2py numpy.testing numpy.distutils numpy.ctypeslib numpy._pytesttester
        pandas.eval pandas.core.computation pandas.util.testing
        torch.jit torch.fx torch._dynamo torch._inductor torch.compile torch.compiler
        torch.export torch._export torch.onnx torch.testing torch._numpy torch._functorch
        torch.utils.bottleneck torch.utils.benchmark torch.utils.throughput_benchmark
        torch.utils.model_dump torch.utils._content_store torch.utils._sympy
        torch.distributed.nn.jit torch.distributed.nn.api torch.library torch.ops torch.classes
        torch.cuda.jiterator torch.cuda._compile_kernel torch._C.import_ir_module
        torch._C.import_ir_module_from_buffer torch._C._import_ir_module_from_package
        functorch torchgen caffe2
    """,
    "imports any name passed to it": """
        importlib imp ihooks imputil pkgutil zipimport zipapp modulefinder site usercustomize
        sitecustomize encodings codecs _codecs copyreg copy_reg pkg_resources _distutils_hack
        torch._utils._import_dotted_name torch._utils_internal torch.package
    """,
    "reads another pickle, unchecked": """
        pickle cpickle _pickle pickletools marshal shelve dill cloudpickle joblib jsonpickle srsly
        dbm anydbm dbhash whichdb bsddb yaml ruamel
        torch.load torch.serialization torch.hub torch.storage._load_from_bytes
        torch.utils.model_zoo torch.utils._config_module torch.utils.show_pickle torch.utils.viz
        torch.utils.data.datapipes.utils torch.utils.data.graph torch.cuda._memory_viz
        torch.distributed.checkpoint.state_dict_loader torch.distributed.checkpoint.load
        torch.distributed.checkpoint.filesystem torch.distributed.checkpoint.format_utils
        torch.distributed.distributed_c10d._tensor_to_object torch.distributed.flight_recorder
        numpy.load pandas.read_pickle pandas.io pandas.compat.pickle_compat
    """,
    "reads or writes files": """
        io _io _pyio fileinput tempfile glob shutil filecmp linecache zipfile tarfile gzip bz2 _bz2
        lzma _lzma zlib mmap fcntl mailbox mhlib mimetools wave aifc audioop chunk sunau sunaudio
        sndhdr imghdr binhex posixfile statvfs dircache macpath os2emxpath ntpath posixpath
        nturl2path genericpath csv _csv netrc plistlib configparser tomllib sqlite3 _sqlite3 logging
        syslog wsgiref cgi cgitb compression smart_open
        torch.save torch.from_file torch.utils.file_baton torch.utils.tensorboard
        numpy.save numpy.savez numpy.savez_compressed numpy.savetxt numpy.loadtxt numpy.genfromtxt
        numpy.fromfile numpy.fromregex numpy.memmap numpy.DataSource numpy.rec numpy.ma.mrecords
        numpy.core.records numpy._core.records numpy.core.memmap numpy._core.memmap
        numpy.core.multiarray.fromfile numpy._core.multiarray.fromfile numpy.lib.npyio
        numpy.lib._npyio_impl numpy.lib.format numpy.lib._format_impl numpy.lib._datasource
        pandas.read_csv pandas.read_table pandas.read_json pandas.read_parquet pandas.read_hdf
        pandas.read_excel pandas.read_sql pandas.read_html pandas.read_xml pandas.HDFStore
    """,
    "opens connections": """
        socket _socket ssl _ssl select selectors socketserver http httplib urllib urllib2 urlparse
        ftplib poplib nntplib smtplib smtpd telnetlib xmlrpc xmlrpclib simplexmlrpclib
        docxmlrpcserver gopherlib basehttpserver simplehttpserver cgihttpserver cookielib cookie
        robotparser rfc822 requests urllib3 aiohttp httpx websocket websockets pycurl paramiko
    """,
    "reaches into the interpreter": """
        sys gc inspect ctypes _ctypes types _types ast _ast dis opcode _opcode faulthandler
        tracemalloc _tracemalloc traceback weakref _weakref rlcompleter readline sysconfig distutils
        warnings _warnings abc _abc typing _typing annotationlib copy contextvars _contextvars
        _thread _imp resource mutex
    """,
    "calls any function passed to it": """
        operator _operator functools _functools itertools sets reprlib repr
    """,
    "installs packages": """
        pip setuptools wheel easy_install ensurepip conda mamba uv poetry pipenv pipx virtualenv pdm
        hatch flit
    """,
    "is part of Python's own tests": "test _testcapi _testinternalcapi _testbuffer _xxtestfuzz",
    # Harmless perhaps, but no training code leaves them behind.
    "is not needed by any checkpoint": """
        __future__ argparse array base64 binascii bisect calendar cmath collections colorsys crypt
        curses dataclasses datetime decimal difflib email enum errno exceptions fnmatch formatter
        fpformat fractions getopt getpass gettext graphlib grp hashlib heapq hmac html htmlparser
        ipaddress json keyword locale math md5 mimetypes mimify msilib multifile nis numbers
        optparse ossaudiodev pathlib pipes pprint pstats pwd pydoc_data pyexpat quopri random re
        secrets sgmllib sha shlex spwd sre_compile sre_constants sre_parse stat statistics string
        stringio cstringio stringprep struct tabnanny termios textwrap time toaiff token tokenize
        tty user userdict userlist userstring unicodedata uu winreg _winreg winsound xdrlib xml
        xmllib zoneinfo dl numpy.test torch.test
    """,
}
_STANDARD = "belongs to the standard library"

_STANDARD_MODULES = {name.casefold() for name in sys.stdlib_module_names}  # also of later versions
_REASONS = {entry.casefold(): why for why, entries in _TABLE.items() for entry in entries.split()}

_ALIASES = {"np": "numpy", "pd": "pandas"}  # as everybody imports them

# As a later component: a way from a harmless module into its imports.
_GATEWAYS = frozenset(
    "os sys subprocess builtins posix nt ntpath posixpath shutil ctypes importlib socket pty runpy "
    "marshal pickle cpickle _pickle dill cloudpickle pdb bdb imp commands popen2 webbrowser codeop "
    "pip setuptools read_pickle eval exec execfile system popen globals locals getattr setattr "
    "delattr _os _sys _subprocess".split()
)


def why_refused(name: str) -> str | None:
    """Say what a name could do in an ordinary unpickler; None where that is nothing.

    Args:
        name: Module and qualified name, joined by a dot. Whether it is one of plain data, or of
            a function that is stood in for, is not asked here.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        return "is no name that Python could have written"
    # Lookalikes count as what they look like, whether or not Python would import them.
    parts = unicodedata.normalize("NFKC", name).casefold().split(".")
    parts[0] = _ALIASES.get(parts[0], parts[0])
    for length in range(len(parts), 0, -1):
        why = _REASONS.get(".".join(parts[:length]))
        if why is not None:
            return why
    top, *rest = parts
    if top in _STANDARD_MODULES or (_is_dunder(top) and top not in ("__main__", "__mp_main__")):
        return _STANDARD
    for part in rest:
        if part in _GATEWAYS or _is_dunder(part):
            return f"leads to {part}"
    return None


def _is_dunder(part: str) -> bool:
    return part.startswith("__") and part.endswith("__") and len(part) > 4
