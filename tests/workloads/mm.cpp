// Memory of every common kind keeps its contents, protection, flags and sharing, and can still grow.
#include <sys/wait.h>

#include <csetjmp>
#include <csignal>
#include <string>

#include "workload.h"

using namespace workload;

namespace {

constexpr size_t kPage = 4096;
sigjmp_buf g_jump;
void on_fault(int) { siglongjmp(g_jump, 1); }

bool faults(volatile char* p, bool write) {
  if (sigsetjmp(g_jump, 1) != 0) return true;
  const char c = *p;
  if (write) *p = c;
  return false;
}

char* map(size_t pages, int protection, int flags, int fd = -1, off_t offset = 0, void* at = nullptr) {
  void* p = mmap(at, pages * kPage, protection, flags, fd, offset);
  expect(p != MAP_FAILED, std::string("mmap: ") + std::strerror(errno));
  return static_cast<char*>(p);
}

constexpr int kRw = PROT_READ | PROT_WRITE;
constexpr int kGuardInstall = 102;  // MADV_GUARD_INSTALL: Linux 6.13, in file mappings 6.15
constexpr int kAnonymous = MAP_PRIVATE | MAP_ANONYMOUS;

struct Areas {
  char *plain, *sparse, *hidden, *guarded, *read_only, *huge, *locked, *on_fault, *advised, *growing;
  char *file_private, *file_shared, *memory_file, *memory_file_again, *shared, *marked;
  char* brk_area;
  int file, memory;
  bool guards, file_guards;  ///< whether the kernel has them
  std::atomic<uint64_t>* child_beat;
};

void make_anonymous(Areas& a) {
  a.plain = map(64, kRw, kAnonymous);
  fill_pattern(a.plain, 64 * kPage, 1);
  a.sparse = map(4096, kRw, kAnonymous | MAP_NORESERVE);
  for (size_t i = 0; i < 4096; i += 37) fill_pattern(a.sparse + i * kPage, 100, i);
  a.hidden = map(8, kRw, kAnonymous);
  fill_pattern(a.hidden, 8 * kPage, 2);
  must(mprotect(a.hidden, 8 * kPage, PROT_NONE), "mprotect");
  a.guarded = map(9, kRw, kAnonymous);
  fill_pattern(a.guarded, 9 * kPage, 3);
  a.read_only = map(4, kRw, kAnonymous);
  fill_pattern(a.read_only, 4 * kPage, 4);
  must(mprotect(a.read_only, 4 * kPage, PROT_READ), "mprotect");
  a.huge = map(2048, kRw, kAnonymous);
  must(madvise(a.huge, 2048 * kPage, MADV_HUGEPAGE), "MADV_HUGEPAGE");
  fill_pattern(a.huge, 2048 * kPage, 5);
  a.locked = map(4, kRw, kAnonymous);
  must(mlock(a.locked, 4 * kPage), "mlock");
  a.on_fault = map(4, kRw, kAnonymous);
  must(mlock2(a.on_fault, 4 * kPage, MLOCK_ONFAULT), "mlock2");
  a.on_fault[0] = 'x';
  a.advised = map(4, kRw, kAnonymous);
  for (int advice : {MADV_DONTFORK, MADV_DONTDUMP, MADV_NOHUGEPAGE, MADV_SEQUENTIAL})
    must(madvise(a.advised, 4 * kPage, advice), "madvise");
  fill_pattern(a.advised, 4 * kPage, 6);
  a.marked = map(6, kRw, kAnonymous);
  fill_pattern(a.marked, 6 * kPage, 12);
  a.guards = madvise(a.marked + 3 * kPage, kPage, kGuardInstall) == 0;
  a.growing = map(2, kRw, kAnonymous | MAP_GROWSDOWN);
  fill_pattern(a.growing, 2 * kPage, 7);
}

void make_files(Areas& a, const std::string& path) {
  a.file = must(open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666), "open");
  std::string content(8 * kPage, 'f');
  expect(write(a.file, content.data(), content.size()) == static_cast<ssize_t>(content.size()), "write failed");
  a.file_private = map(8, kRw, MAP_PRIVATE, a.file);
  fill_pattern(a.file_private + 2 * kPage, 3 * kPage, 8);
  a.file_guards = madvise(a.file_private + 7 * kPage, kPage, kGuardInstall) == 0;
  a.file_shared = map(4, kRw, MAP_SHARED, a.file, 4 * kPage);
  a.memory = must(memfd_create("workload mm", MFD_CLOEXEC | MFD_ALLOW_SEALING), "memfd_create");
  must(ftruncate(a.memory, 16 * kPage), "ftruncate");
  must(fcntl(a.memory, F_ADD_SEALS, F_SEAL_SHRINK), "F_ADD_SEALS");
  a.memory_file = map(16, kRw, MAP_SHARED, a.memory);
  a.memory_file_again = map(4, PROT_READ, MAP_SHARED, a.memory, 8 * kPage);
  fill_pattern(a.memory_file + 2 * kPage, 9 * kPage, 9);
  a.shared = map(32, kRw, MAP_SHARED | MAP_ANONYMOUS);
  fill_pattern(a.shared + 3 * kPage, 5 * kPage, 10);
}

void check_anonymous(const Areas& a) {
  expect_pattern(a.plain, 64 * kPage, 1, "private memory");
  for (size_t i = 0; i < 4096; i += 37) expect_pattern(a.sparse + i * kPage, 100, i, "sparse page");
  for (size_t i = 1; i < 4096; i += 37)
    if (i % 37 != 0) expect(a.sparse[i * kPage] == 0, "untouched page is not zero");
  expect(faults(a.hidden, false), "PROT_NONE memory can be read");
  must(mprotect(a.hidden, 8 * kPage, PROT_READ), "mprotect");
  expect_pattern(a.hidden, 8 * kPage, 2, "memory behind PROT_NONE");
  must(mprotect(a.hidden, 8 * kPage, PROT_NONE), "mprotect");
  expect(faults(a.guarded + 4 * kPage, false), "a hole is mapped");
  expect_pattern(a.guarded, 4 * kPage, 3, "memory before the hole");
  expect(faults(a.read_only, true), "read-only memory can be written");
  expect_pattern(a.read_only, 4 * kPage, 4, "read-only memory");
  expect_pattern(a.huge, 2048 * kPage, 5, "huge-page memory");
  expect(faults(a.marked + 3 * kPage, false) == a.guards, "the guard region");
  expect_pattern(a.marked, 3 * kPage, 12, "memory before the guard region");
  expect(!faults(a.marked + 4 * kPage, false), "memory behind the guard region");
  expect(a.on_fault[0] == 'x', "locked memory differs");
  expect_pattern(a.advised, 4 * kPage, 6, "advised memory");
  expect_pattern(a.growing, 2 * kPage, 7, "MAP_GROWSDOWN memory");
  expect_pattern(a.brk_area, 3 * kPage, 11, "heap");
}

void check_files(const Areas& a) {
  for (size_t i = 0; i < kPage; ++i) expect(a.file_private[i] == 'f', "file mapping differs from its file");
  expect_pattern(a.file_private + 2 * kPage, 3 * kPage, 8, "written pages of a private file mapping");
  expect(faults(a.file_private + 7 * kPage, false) == a.file_guards, "the guard region in a file mapping");
  static char stamp = 'a';
  stamp = stamp == 'z' ? 'a' : static_cast<char>(stamp + 1);
  a.file_shared[kPage + 5] = stamp;
  char c = 0;
  expect(pread(a.file, &c, 1, 5 * kPage + 5) == 1 && c == stamp, "a shared file mapping does not reach its file");
  a.memory_file[15 * kPage] = stamp;
  expect(pread(a.memory, &c, 1, 15 * kPage) == 1 && c == stamp, "a memfd mapping does not reach its memfd");
  expect_pattern(a.memory_file + 2 * kPage, 9 * kPage, 9, "memfd");
  expect(std::memcmp(a.memory_file_again, a.memory_file + 8 * kPage, 4 * kPage) == 0, "second mapping of the memfd");
  expect_equal(fcntl(a.memory, F_GET_SEALS), F_SEAL_SHRINK, "memfd seals");
  expect_pattern(a.shared + 3 * kPage, 5 * kPage, 10, "shared anonymous memory");
  const uint64_t beat = *a.child_beat;
  await([&] { return *a.child_beat != beat; }, "the child's writes to shared memory");
}

[[gnu::noinline]] uint64_t deep(int levels) {
  volatile char room[32 * 1024];
  room[0] = static_cast<char>(levels);
  room[sizeof room - 1] = 1;
  return levels == 0 ? 1 : deep(levels - 1) + static_cast<uint64_t>(room[sizeof room - 1]);
}

void check_growth(const Areas&) {
  // In a child, so that the maps stay as they are.
  const pid_t child = must(fork(), "fork");
  if (child == 0) {
    char* top = static_cast<char*>(sbrk(1 << 20));
    if (reinterpret_cast<intptr_t>(top) == -1) _exit(10);
    std::memset(top, 1, 1 << 20);
    char* p = map(4, kRw, kAnonymous);
    std::memset(p, 7, 4 * kPage);
    void* q = mremap(p, 4 * kPage, 4096 * kPage, MREMAP_MAYMOVE);
    if (q == MAP_FAILED || static_cast<char*>(q)[4 * kPage - 1] != 7 || static_cast<char*>(q)[4 * kPage] != 0)
      _exit(11);
    _exit(deep(60) == 61 ? 0 : 12);
  }
  int status = 0;
  must(waitpid(child, &status, 0), "waitpid");
  expect(status == 0, "growing heap (10), mremap (11) or stack (12) failed: status " + std::to_string(status));
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        struct sigaction fault = {};
        fault.sa_handler = on_fault;
        sigaction(SIGSEGV, &fault, nullptr);
        Areas a{};
        make_anonymous(a);
        make_files(a, w.path("mapped"));
        a.brk_area = static_cast<char*>(sbrk(3 * kPage));
        fill_pattern(a.brk_area, 3 * kPage, 11);
        a.child_beat = shared_memory<std::atomic<uint64_t>>();
        if (must(fork(), "fork") == 0) {
          while (getppid() != 1) ++*a.child_beat, sleep_ms(2);
          _exit(0);
        }
        // Last, so that no other mapping gets there.
        must(munmap(a.guarded + 4 * kPage, kPage), "munmap");
        w.serve([&] {
          check_anonymous(a);
          check_files(a);
          check_growth(a);
        });
      },
      argv[0]);
}
