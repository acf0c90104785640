// System V shared memory: a segment of any size and key in two processes, attached twice, in part, read-only, locked,
// removed while attached, attached by nobody; numbers, owners and modes.
#include <signal.h>
#include <sys/prctl.h>

#include "sysv.h"

using namespace workload;

namespace {

constexpr size_t kPage = 4096, kOdd = 70'001, kLarge = 4 << 20, kPart = 9 * kPage;

char* attach(int id, int flags = 0) {
  void* at = shmat(id, nullptr, flags);
  expect(at != reinterpret_cast<void*>(-1), std::string("shmat: ") + std::strerror(errno));
  return static_cast<char*>(at);
}

shmid_ds look(int id) {
  shmid_ds ds{};
  must(shmctl(id, IPC_STAT, &ds), "IPC_STAT");
  return ds;
}

struct Segments {
  int odd, large, part, removed, loose;
  char *odd_at, *odd_again, *read_only, *large_at, *part_at, *removed_at;
  shmid_ds odd_was;
};

Segments make(const Workload& w) {
  Segments s{};
  // Other numbers than the first.
  for (int i = 0; i < 3; ++i) must(shmctl(must(shmget(IPC_PRIVATE, kPage, 0600), "shmget"), IPC_RMID, nullptr), "rmid");
  s.odd = noted(w, 'm', must(shmget(key_of(1), kOdd, IPC_CREAT | IPC_EXCL | 0640), "shmget"));
  s.large = noted(w, 'm', must(shmget(IPC_PRIVATE, kLarge, 0600), "shmget"));
  s.part = noted(w, 'm', must(shmget(IPC_PRIVATE, kPart, 0600), "shmget"));
  s.removed = noted(w, 'm', must(shmget(key_of(2), kPage, IPC_CREAT | 0600), "shmget"));
  s.loose = noted(w, 'm', must(shmget(key_of(3), 3 * kPage, IPC_CREAT | 0604), "shmget"));
  s.odd_at = attach(s.odd);
  s.odd_again = attach(s.odd);
  s.read_only = attach(s.odd, SHM_RDONLY);
  s.large_at = attach(s.large);
  s.part_at = attach(s.part);
  s.removed_at = attach(s.removed);
  must(shmctl(s.removed, IPC_RMID, nullptr), "IPC_RMID");
  char* loose = attach(s.loose);
  fill_pattern(s.odd_at, kOdd, 1);
  for (size_t i = 0; i < kLarge / kPage; i += 3) fill_pattern(s.large_at + i * kPage, kPage, 100 + i);
  fill_pattern(s.part_at, kPart, 3);
  fill_pattern(s.removed_at, kPage, 4);
  fill_pattern(loose, 3 * kPage, 5);
  must(shmdt(loose), "shmdt");
  must(munmap(s.part_at, 2 * kPage), "munmap");
  must(munmap(s.part_at + 4 * kPage, kPage), "munmap");
  must(mprotect(s.part_at + 6 * kPage, kPage, PROT_READ), "mprotect");
  shmid_ds ds = look(s.loose);
  ds.shm_perm.uid = 1234;
  ds.shm_perm.gid = 2345;
  must(shmctl(s.loose, IPC_SET, &ds), "IPC_SET");
  return s;
}

void verify_memory(const Segments& s) {
  expect_pattern(s.odd_at, kOdd, 1, "the odd segment");
  expect_pattern(s.odd_again, kOdd, 1, "its second attachment");
  expect_pattern(s.read_only, kOdd, 1, "its read-only attachment");
  expect(mprotect(s.read_only, kPage, PROT_READ | PROT_WRITE) == -1 && errno == EACCES, "it can be made writable");
  for (size_t i = 0; i < kLarge / kPage; ++i) {
    if (i % 3 == 0) expect_pattern(s.large_at + i * kPage, kPage, 100 + i, "the large segment");
    if (i % 3 == 1) expect(s.large_at[i * kPage] == 0, "an empty page has something");
  }
  for (const size_t page : {2, 3, 5, 6, 7, 8})
    for (size_t i = page * kPage; i < (page + 1) * kPage; ++i)
      expect(static_cast<uint8_t>(s.part_at[i]) == pattern(i, 3), "the segment that is mapped in part differs");
  expect_pattern(s.removed_at, kPage, 4, "the removed segment");
}

void verify_facts(const Segments& s) {
  const shmid_ds odd = look(s.odd), removed = look(s.removed), loose = look(s.loose);
  expect_equal(odd.shm_segsz, kOdd, "the size");
  expect_equal(odd.shm_nattch, 6U, "the number of attachments");
  expect_equal(odd.shm_perm.mode, s.odd_was.shm_perm.mode, "the mode");
  expect_equal(odd.shm_perm.__key, key_of(1), "the key");
  expect_equal(odd.shm_perm.cuid, s.odd_was.shm_perm.cuid, "the creator");
  expect_equal(shmget(key_of(1), 0, 0), s.odd, "what the key leads to");
  expect_equal(look(s.part).shm_nattch, 2U * 4U, "the number of attachments of parts");
  expect((removed.shm_perm.mode & SHM_DEST) != 0, "the removed segment is not any more");
  expect_equal(removed.shm_nattch, 2U, "the attachments of the removed one");
  expect(shmget(key_of(2), 0, 0) == -1 && errno == ENOENT, "its key leads to something");
  expect_equal(loose.shm_nattch, 0U, "the attachments of what nobody has");
  expect_equal(loose.shm_perm.uid, 1234U, "the owner");
  expect_equal(loose.shm_perm.gid, 2345U, "the group");
  expect_equal(loose.shm_perm.mode & 0777U, 0604U, "the mode");
  const char* at = attach(shmget(key_of(3), 0, 0));
  expect_pattern(at, 3 * kPage, 5, "the segment that nobody has attached");
  must(shmdt(at), "shmdt");
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        Segments s = make(w);
        s.odd_was = look(s.odd);
        // Through pages that nothing else is kept in.
        auto* beats = reinterpret_cast<std::atomic<uint32_t>*>(s.large_at + 2 * kPage);
        auto* to_child = reinterpret_cast<std::atomic<uint32_t>*>(s.large_at + 5 * kPage);
        auto* from_child = reinterpret_cast<std::atomic<uint32_t>*>(s.large_at + 8 * kPage);
        if (must(fork(), "fork") == 0) {
          prctl(PR_SET_PDEATHSIG, SIGKILL);
          for (;;) {
            beats->fetch_add(1);
            from_child->store(to_child->load());
            sleep_ms(1);
          }
        }
        w.serve([&] {
          const uint32_t asked = to_child->fetch_add(1) + 1;
          await([&] { return from_child->load() == asked; }, "an answer through the segment");
          const uint32_t beat = beats->load();
          await([&] { return beats->load() != beat; }, "the child to write");
          verify_memory(s);
          verify_facts(s);
        });
      },
      "sysv_shm");
}
