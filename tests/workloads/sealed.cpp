// memfds: with each seal, and a program in one, which runs, and can be run again as long as nobody may write to it.
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>

#include <csignal>
#include <vector>

#include "workload.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif
#ifndef F_SEAL_EXEC
#define F_SEAL_EXEC 0x0020
#endif

using namespace workload;

namespace {

int make(const char* name, unsigned flags) {
  return static_cast<int>(must(syscall(SYS_memfd_create, name, flags), name));
}

/// Readable only, with nobody who may write to it.
int read_only(int fd) {
  const int again = must(open(("/proc/self/fd/" + std::to_string(fd)).c_str(), O_RDONLY | O_CLOEXEC), "open a memfd");
  close(fd);
  return again;
}

/// `sleep SECONDS`, from the memfd.
pid_t start_program(int fd, const char* seconds) {
  const pid_t child = must(fork(), "fork");
  if (child != 0) return child;
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  char name[] = "sleep";
  char* const arguments[] = {name, const_cast<char*>(seconds), nullptr};
  char* const environment[] = {nullptr};
  syscall(SYS_execveat, fd, "", arguments, environment, AT_EMPTY_PATH);
  _exit(errno);
}

int run_program(int fd) {
  int status = 0;
  must(waitpid(start_program(fd, "0"), &status, 0), "waitpid");
  return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const int source = must(open("/bin/sleep", O_RDONLY | O_CLOEXEC), "open a program");
        struct stat st {};
        must(fstat(source, &st), "fstat");
        std::vector<char> bytes(static_cast<size_t>(st.st_size));
        expect(read(source, bytes.data(), bytes.size()) == st.st_size, "read a program");
        close(source);
        const int writable = make("program", MFD_CLOEXEC | MFD_ALLOW_SEALING);
        expect(write(writable, bytes.data(), bytes.size()) == st.st_size, "write a program");
        const int program = read_only(writable);
        const pid_t running = start_program(program, "1200");
        await(
            [&] {
              char exe[16] = {};
              const ssize_t n = readlink(("/proc/" + std::to_string(running) + "/exe").c_str(), exe, sizeof exe - 1);
              return n > 0 && std::string(exe).starts_with("/memfd:program");
            },
            "the program in the memfd");
        void* mapped = mmap(nullptr, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, program, 0);
        expect(mapped != MAP_FAILED, "mmap failed");
        const std::vector<int> seals{F_SEAL_SHRINK,
                                     F_SEAL_GROW,
                                     F_SEAL_WRITE,
                                     F_SEAL_FUTURE_WRITE,
                                     F_SEAL_EXEC,
                                     F_SEAL_SEAL,
                                     F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL};
        std::vector<int> files;
        for (const int seal : seals) {
          files.push_back(make("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING));
          must(ftruncate(files.back(), 8192), "ftruncate");
          must(pwrite(files.back(), "content", 7, 4096), "pwrite");
          must(fcntl(files.back(), F_ADD_SEALS, seal), "F_ADD_SEALS");
        }
        std::vector<int> has;
        for (const int fd : files) has.push_back(must(fcntl(fd, F_GET_SEALS), "F_GET_SEALS"));
        w.serve([&] {
          expect(kill(running, 0) == 0 && waitpid(running, nullptr, WNOHANG) == 0, "the program that ran has ended");
          expect_equal(run_program(program), 0, "what a program in a memfd ends with");
          for (size_t i = 0; i < files.size(); ++i) {
            expect_equal(fcntl(files[i], F_GET_SEALS), has[i], "seals");
            char text[8] = {};
            expect(pread(files[i], text, 7, 4096) == 7 && std::strcmp(text, "content") == 0, "content");
          }
        });
      },
      argv[0]);
}
