// A model of what a receiver of dirty-tracking rounds does, for tests: every page it has, by memory.
#pragma once

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/freeze/stopped_tree.h"
#include "core/memory/dirty_tracker.h"
#include "core/memory/page_scan.h"
#include "core/memory/vma.h"

namespace migrate {

using PageBytes = std::array<char, kPageSize>;

inline bool is_zero_page(const PageBytes& page) {
  return page[0] == 0 && std::memcmp(page.data(), page.data() + 1, kPageSize - 1) == 0;
}

inline bool has_page(const DirtyTracker::Round& round, uint64_t address) {
  for (const PageSource& source : round.sources)
    for (const PageRun& run : source.runs)
      if (run.address <= address && address < run.address + run.pages * kPageSize) return true;
  return false;
}

class ModelReceiver {
 public:
  using Memory = std::map<uint64_t, std::unique_ptr<PageBytes>>;

  void apply(const DirtyTracker::Round& round) {
    apply(round.discards);  // before the pages, as they are sent: where a page of one kind is gone there may be another
    for (const PageSource& source : round.sources) read_into(source);
    std::erase_if(memories_, [&](const auto& entry) {
      if (entry.first.kind != MemoryId::Kind::task) {
        for (const TreeLayout::Object& object : round.layout.objects)
          if (object.id == entry.first.id) return false;
        return true;
      }
      for (const TreeLayout::Task& task : round.layout.tasks)
        if (static_cast<uint64_t>(task.pid) == entry.first.id) return false;
      return true;
    });
  }

  /// Stops the tree, applies the last round and compares. Empty: equal; else what differs first.
  std::string finish(DirtyTracker& tracker, Pid root, Logger& log) {
    StoppedTree tree(root, {}, log);
    return finish(tracker, everything(tree));
  }
  /// The same with all that the stopped tree has.
  std::string finish(DirtyTracker& tracker, std::vector<PageSource> all) {
    ModelReceiver truth;
    for (const PageSource& source : all) truth.read_into(source, true);
    const DirtyTracker::Last last = tracker.last_round(all);
    apply(last.discards);
    for (const PageSource& source : all) read_into(source);
    left_ = last.pages;
    // Tasks that ended since the last round.
    std::erase_if(memories_, [&](const auto& entry) { return !truth.memories_.contains(entry.first); });
    return difference(truth);
  }
  /// Pages that the last round had left.
  uint64_t left() const { return left_; }

 private:
  void apply(const std::vector<PageDiscard>& discards) {
    for (const PageDiscard& d : discards) {
      Memory& memory = memories_[d.memory];
      memory.erase(memory.lower_bound(d.address), memory.lower_bound(d.address + d.pages * kPageSize));
    }
  }

  /// As the dumper would offer it.
  static std::vector<PageSource> everything(StoppedTree& tree) {
    std::vector<PageSource> all;
    for (const StoppedTask& task : tree.tasks()) {
      if (task.state == TaskState::zombie) continue;
      PageSource source{.memory = {MemoryId::Kind::task, static_cast<uint64_t>(task.pid.get())},
                        .fd = task.proc.open("mem", O_RDONLY)};
      const Fd pagemap = task.proc.open("pagemap", O_RDONLY);
      for (const Vma& vma : parse_smaps(task.proc.read("maps"))) {
        if (vma.shared && vma.name.starts_with("/dev/zero (deleted)"))
          add_object(task, "map_files/" + vma.link_name(), all);
        if (vma.name.starts_with("/memfd:")) add_object(task, "map_files/" + vma.link_name(), all);
        if (vma.shared || vma.name.starts_with("[v")) continue;
        const RemoteRange range = vma.range;
        for (PageRun run : scan_private_pages(pagemap.get(), std::span(&range, 1))) {
          run.zero_ok = !vma.has_file();
          source.runs.push_back(run);
        }
      }
      all.push_back(std::move(source));
      for (const int fd : task.proc.descriptors()) {
        const std::string path = "fd/" + std::to_string(fd);
        if (task.proc.link(path).starts_with("/memfd:")) add_object(task, path, all);
      }
    }
    return all;
  }

  static void add_object(const StoppedTask& task, const std::string& path, std::vector<PageSource>& all) {
    PageSource source{.fd = task.proc.open(path, O_RDONLY)};
    struct stat st {};
    ASSERT_EQ(::fstat(source.fd.get(), &st), 0);
    source.memory = {MemoryId::Kind::shmem, st.st_ino};
    for (const PageSource& known : all)
      if (known.memory == source.memory) return;
    source.runs = scan_object_pages(source.fd.get());
    for (PageRun& run : source.runs) run.zero_ok = true;
    all.push_back(std::move(source));
  }

  void read_into(const PageSource& source, bool keep_zeros = false) {
    Memory& memory = memories_[source.memory];
    uint64_t end = 0;
    for (const PageRun& run : source.runs) {
      EXPECT_GE(run.address, end);
      end = run.address + run.pages * kPageSize;
      for (uint64_t at = run.address; at < end; at += kPageSize) {
        auto page = std::make_unique<PageBytes>();  // zeros
        const ssize_t n = ::pread(source.fd.get(), page->data(), kPageSize, static_cast<off_t>(at));
        // The last page of a memory file may be partly behind its end.
        if (n != static_cast<ssize_t>(kPageSize) && (n <= 0 || source.memory.kind == MemoryId::Kind::task)) {
          EXPECT_TRUE(source.may_vanish) << "task " << source.memory.id << " address " << std::hex << at;
          continue;
        }
        if (run.zero_ok && !keep_zeros && is_zero_page(*page)) continue;
        memory[at] = std::move(page);
      }
    }
  }

  std::string difference(const ModelReceiver& truth) const {
    static const PageBytes kZeros{};
    for (const auto& [id, pages] : truth.memories_) {
      const auto mine = memories_.find(id);
      for (const auto& [address, page] : pages) {
        const PageBytes* have = &kZeros;
        if (mine != memories_.end()) {
          if (const auto found = mine->second.find(address); found != mine->second.end()) have = found->second.get();
        }
        if (*have != *page) return place(id, address) + " has other contents";
      }
    }
    for (const auto& [id, pages] : memories_) {
      const auto real = truth.memories_.find(id);
      for (const auto& [address, page] : pages)
        if (real == truth.memories_.end() || !real->second.contains(address))
          return place(id, address) + " should not exist";
    }
    return "";
  }
  static std::string place(MemoryId id, uint64_t address) {
    char text[96];
    std::snprintf(text, sizeof text, "memory %d/%lu page %lx", static_cast<int>(id.kind), id.id, address);
    return text;
  }

  std::map<MemoryId, Memory> memories_;
  uint64_t left_ = 0;
};

}  // namespace migrate
