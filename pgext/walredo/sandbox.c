/*
 * sandbox.c
 *	  What the process gives up before it looks at the first byte of a tenant's WAL.
 *
 * Redo functions trust WAL. Whoever can write it may well take this process over, so it must not be able to reach anything:
 * no files but the six empty ones of the made-up relations, no sockets, no other process, no more memory than agreed.
 */
#include "walredo.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "libpq/pqsignal.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/pg_shmem.h"
#include "utils/timeout.h"

/* No file of the scratch directory may grow beyond this; nothing is expected to grow at all. */
#define FILE_SIZE_MAX (1024 * 1024)

static void
set_limit(int resource, const char *name, rlim_t value)
{
	struct rlimit limit = {value, value};

	if (setrlimit(resource, &limit) != 0)
		ereport(FATAL,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("could not limit %s: %m", name)));
}

/*
 * Arranges that the process can be killed at any moment, also by the death of its parent, and leaves nothing behind: a System V
 * segment would outlive it, and there are only 4096.
 */
void
leave_no_traces(void)
{
	if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0)
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("could not tie the redo process to its parent: %m")));
	set_limit(RLIMIT_CORE, "core files", 0);
	if (UsedShmemSegID != 0)
	{
		/* What PostgreSQL calls the segment's ID is its key. */
		int			segment = shmget((key_t) UsedShmemSegID, 0, 0);

		/* Removing an attached segment marks it for removal with its last user, who is us. */
		if (segment < 0 || shmctl(segment, IPC_RMID, NULL) != 0)
			ereport(WARNING,
					(errmsg("could not mark shared memory segment %lu for removal: %m", UsedShmemSegID)));
	}

	/* A key press in the server's terminal is the server's business; everything else ends us as it ends any program. */
	disable_all_timeouts(false);
	pqsignal(SIGINT, SIG_IGN);
	pqsignal(SIGHUP, SIG_IGN);
	pqsignal(SIGTERM, SIG_DFL);
	pqsignal(SIGQUIT, SIG_DFL);
	pqsignal(SIGUSR1, SIG_IGN);
}

/*
 * Closes everything but standard input, output and error: what the parent may have leaked as well as what the backend opened to
 * start (catalogs, WAL, epoll). None of it is needed any more.
 */
void
drop_inherited_descriptors(void)
{
	closeAllVfds();
	if (syscall(SYS_close_range, 3, ~0U, 0) != 0)
	{
		long		max = sysconf(_SC_OPEN_MAX);

		for (int fd = 3; fd < Min(max, 65536); fd++)
			close(fd);
	}
}

/* The size of our address space in bytes. */
static rlim_t
address_space(void)
{
	unsigned long pages = 0;
	FILE	   *file = AllocateFile("/proc/self/statm", "r");

	if (file == NULL || fscanf(file, "%lu", &pages) != 1)
		ereport(FATAL,
				(errcode_for_file_access(),
				 errmsg("could not read \"%s\": %m", "/proc/self/statm")));
	FreeFile(file);
	return (rlim_t) pages * sysconf(_SC_PAGESIZE);
}

/* Reports a forbidden system call and ends; only functions that are safe in a signal handler are used. */
static void
on_forbidden_call(int signo, siginfo_t *info, void *context)
{
	char		text[] = "walredo: seccomp: bad syscall 0000\n";
	int			number = info->si_syscall;

	for (char *digit = text + sizeof(text) - 3; number > 0 && *digit == '0'; digit--)
	{
		*digit = '0' + number % 10;
		number /= 10;
	}
	if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0)
		_exit(2);
	_exit(1);
}

#define ALLOW(call) \
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_##call, 0, 1), \
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)

/* Low 32 bits of a system call's argument; x86-64 is little-endian. */
#define LOAD_ARGUMENT(n) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[n]))

static void
install_filter(void)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		/* the pipes, and the open files of the made-up relations */
		ALLOW(read),
		ALLOW(write),
		ALLOW(lseek),
		ALLOW(pread64),
		ALLOW(pwrite64),
		ALLOW(preadv),
		ALLOW(pwritev),
		/* memory; mapping only without a file and never executable, below */
		ALLOW(brk),
		ALLOW(munmap),
		ALLOW(mremap),
		ALLOW(madvise),
		/* end, locks, time, and what error reports use */
		ALLOW(exit),
		ALLOW(exit_group),
		ALLOW(futex),
		ALLOW(getpid),
		ALLOW(gettid),
		ALLOW(clock_gettime),
		ALLOW(gettimeofday),
		ALLOW(rt_sigprocmask),
		ALLOW(rt_sigreturn),
		ALLOW(restart_syscall),
		/* abort() signals ourselves, nobody else may be */
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_tgkill, 0, 3),
		LOAD_ARGUMENT(0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32) getpid(), 0, 6),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
		/* mmap: MAP_ANONYMOUS without PROT_EXEC */
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_mmap, 0, 4),
		LOAD_ARGUMENT(2),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, PROT_EXEC, 2, 0),
		LOAD_ARGUMENT(3),
		BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, MAP_ANONYMOUS, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {
		.len = lengthof(filter),
		.filter = filter,
	};
	struct sigaction action = {.sa_sigaction = on_forbidden_call,.sa_flags = SA_SIGINFO};

	sigemptyset(&action.sa_mask);
	if (sigaction(SIGSYS, &action, NULL) != 0 ||
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not enter the sandbox: %m"),
				 errhint("The kernel must offer seccomp filters; walredo.seccomp=off gives up this protection.")));
}

void
enter_sandbox(int memory_limit_mb, bool filter_system_calls)
{
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
		ereport(FATAL,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("could not give up gaining privileges: %m")));
	set_limit(RLIMIT_AS, "memory", address_space() + (rlim_t) memory_limit_mb * 1024 * 1024);
	set_limit(RLIMIT_FSIZE, "file size", FILE_SIZE_MAX);
	set_limit(RLIMIT_NPROC, "processes", 0);
	/* Those that are open stay open; no further one can be made. */
	set_limit(RLIMIT_NOFILE, "open files", 0);
	if (filter_system_calls)
		install_filter();
}
