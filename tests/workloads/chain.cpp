// Three tasks, each the child of the one before, with NUMBER MiB (default 16) each of memory that no other knows. Asked
// how they are, each looks at all of its own, and has a child of its own look, too. WHO (default 0, bits from the
// root's on) may have lost pages, which then raise SIGBUS; how many each has lost stands in the file "lost". No page
// may be another. "warm" tells how often each has done all that it takes to look, but for looking.
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>

#include "workload.h"

using namespace workload;

namespace {

constexpr int kTasks = 3;
constexpr size_t kPage = 4096;

struct Count {
  std::atomic<uint64_t> asked, answered, lost, wrong, warm;
};

sigjmp_buf g_out;

void on_bus(int /*signal*/) { siglongjmp(g_out, 1); }

struct Member {
  int number;
  volatile uint64_t* words;
  size_t pages;
  Count* count;

  uint64_t word(size_t page) const { return (page + 1) * 0x9E3779B97F4A7C15ULL + static_cast<uint64_t>(number); }

  void fill() const {
    for (size_t i = 0; i < pages; ++i)
      for (size_t w = 0; w < kPage / 8; ++w) words[i * kPage / 8 + w] = word(i) + w;
  }

  void look(std::atomic<uint64_t>& lost, std::atomic<uint64_t>& wrong) const {
    for (size_t i = 0; i < pages; ++i) look_at(i, lost, wrong);
  }

  void look_at(size_t page, std::atomic<uint64_t>& lost, std::atomic<uint64_t>& wrong) const {
    if (sigsetjmp(g_out, 1) != 0) {
      ++lost;
      return;
    }
    for (size_t w = 0; w < kPage / 8; w += 64)
      if (words[page * kPage / 8 + w] != word(page) + w) ++wrong;
  }

  void answer() const {
    count->lost = count->wrong = 0;
    look(count->lost, count->wrong);
    // A child has lost the same.
    std::atomic<uint64_t>* inherited = shared_memory<std::atomic<uint64_t>>(2);
    const pid_t child = must(fork(), "fork");
    if (child == 0) {
      look(inherited[0], inherited[1]);
      std::_Exit(0);
    }
    must(waitpid(child, nullptr, 0), "waitpid");
    if (inherited[0] != count->lost) ++count->wrong;
    count->wrong += inherited[1];
    munmap(inherited, 2 * sizeof *inherited);
    count->answered = count->asked.load();
  }
};

/// All that answering takes but the pages themselves: what a task needs for that it has then, though its pages are
/// lost.
void keep_warm(Member member) {
  Count nobody_asked{};
  std::atomic<uint64_t>& warm = member.count->warm;
  member.pages = 0;
  member.count = &nobody_asked;
  if (sigsetjmp(g_out, 1) == 0) raise(SIGBUS);
  member.answer();
  ++warm;
}

void wait_and_answer(const Member& member, const Workload& w) {
  while (access(w.dir().c_str(), F_OK) == 0) {
    if (member.count->answered != member.count->asked) {
      member.answer();
    } else {
      keep_warm(member);
    }
    sleep_ms(20);
  }
}

void write_file(const std::string& path, const std::string& text) {
  const int file = must(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666), "open a file");
  must(write(file, text.data(), text.size()), "write a file");
  close(file);
}

}  // namespace

int main(int argc, char** argv) {
  return run(
      [&] {
        Workload w(argc, argv);
        const size_t pages = static_cast<size_t>(w.number(0, 16)) * 256;
        const auto may_lose = static_cast<unsigned long>(w.number(1, 0));
        struct sigaction bus {};
        bus.sa_handler = on_bus;
        must(sigaction(SIGBUS, &bus, nullptr), "sigaction");
        Count* counts = shared_memory<Count>(kTasks);
        std::atomic<int>* ready = shared_memory<std::atomic<int>>();
        const auto begin = [&](int number) {
          void* area = mmap(nullptr, pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
          expect(area != MAP_FAILED, "mmap failed");
          const Member member{number, static_cast<volatile uint64_t*>(area), pages, &counts[number]};
          member.fill();
          return member;
        };
        const pid_t child = must(fork(), "fork");
        if (child == 0) {
          const pid_t grandchild = must(fork(), "fork");
          const Member member = begin(grandchild == 0 ? 2 : 1);
          ++*ready;
          wait_and_answer(member, w);
          std::_Exit(0);
        }
        const Member root = begin(0);
        await([&] { return *ready == kTasks - 1; }, "the others");
        w.serve(
            [&] {
              for (int i = 1; i < kTasks; ++i) ++counts[i].asked;
              root.answer();
              std::string lost;
              for (int i = 0; i < kTasks; ++i) {
                await([&] { return counts[i].answered == counts[i].asked; }, "task " + std::to_string(i));
                expect(counts[i].wrong == 0, "task " + std::to_string(i) + " has wrong pages");
                expect(counts[i].lost == 0 || (may_lose >> i & 1) != 0,
                       "task " + std::to_string(i) + " has lost " + std::to_string(counts[i].lost) + " pages");
                lost += std::to_string(counts[i].lost) + " ";
              }
              write_file(w.path("lost"), lost);
            },
            [&] {
              keep_warm(root);
              std::string warm;
              for (int i = 0; i < kTasks; ++i) warm += std::to_string(counts[i].warm) + " ";
              write_file(w.path("warm"), warm);
              sleep_ms(20);
            });
      },
      argv[0]);
}
