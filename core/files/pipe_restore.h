// Pipes and FIFOs again: one pipe an id, ends opened from it, data put back.
#pragma once

#include <map>
#include <span>
#include <vector>

#include "core/files/file_owners.h"
#include "core/files/task_paths.h"

namespace migrate {

class PipeRestorer {
 public:
  explicit PipeRestorer(const ImageSet& images);
  /// `owner`: of the pipe, who may open it again (/dev/stdout). `ours`: of what we make.
  Fd open_pipe(const img::pipe_entry& entry, const FileOwner& owner, const FileOwner& ours);
  /// `path`: an O_PATH descriptor of the FIFO, found by the right that `paths` has taken on. `unwritten`: a reader that
  /// has seen no writer; nor does a reader at the source, where that is the same FIFO, if none is needed to fill it.
  Fd open_fifo(const img::fifo_entry& entry, int path, uint32_t flags, TaskPaths& paths, bool unwritten);
  /// Closes the ends that keep pipes alive while their users are opened: call when all are open.
  void finish() { pipes_.clear(), fifos_.clear(); }

 private:
  struct Data {
    std::span<const std::byte> bytes;
    uint32_t size = 0;
    std::vector<uint32_t> packets;  ///< lengths that add up to the bytes; none: a stream
  };
  static std::map<uint32_t, Data> read_data(const ImageSet& images, const char* name, uint32_t magic);
  void read_packets(const ImageSet& images);
  static void fill(int fd, const Data& data);
  static void fill_fifo(int fd, const Data& data);
  static Fd open_both_ways(int path, int access, bool data, TaskPaths& paths);
  struct Ends {
    Fd read, write;
    bool read_given = false, write_given = false;
  };
  std::map<uint32_t, Data> pipe_data_, fifo_data_;
  std::map<uint32_t, Ends> pipes_;
  std::map<uint32_t, Fd> fifos_;
};

}  // namespace migrate
