// Pipes and FIFOs: their ends, and the bytes in them, copied with tee(2) so that nothing is consumed.
#pragma once

#include <map>
#include <string>

#include "core/files/open_file.h"
#include "core/files/regular.h"

namespace migrate {

/// Where packets end: an image of our own (proto/ext/ext.proto, PipePackets).
inline constexpr char kPipePacketsImage[] = "migrate-pipes.img";
inline constexpr uint32_t kPipePacketsMagic = 0x4d494750;
/// Readers of FIFOs to whom no hang-up is told, though nobody writes (proto/ext/ext.proto, WaitingReader).
inline constexpr char kWaitingReadersImage[] = "migrate-fifos.img";
inline constexpr uint32_t kWaitingReadersMagic = 0x4d494752;

class PipeDumper {
 public:
  explicit PipeDumper(DumpContext& context) : context_(context) {}
  void dump_pipe(const OpenFile& file);
  /// `regular` describes the path.
  void dump_fifo(const OpenFile& file, RegularDumper& regular);
  /// Refuses pipes whose other end is held by somebody outside the tree. Call when all descriptors were seen.
  void check_ends() const;
  /// The same of FIFOs, of which the other end may never have been.
  void check_fifo_ends() const;

 private:
  struct Seen {
    uint32_t id = 0;
    bool reader = false, writer = false;
    bool other_side = false;  ///< as poll(2) tells when only one kind of end is ours
    std::string who;
    std::vector<uint32_t> waiting;  ///< readers of a FIFO without a hang-up
  };
  Seen& see(const OpenFile& file, const char* image, uint32_t magic);
  static Refusal held_outside(const Seen& seen, const std::string& holder);
  void dump_data(const OpenFile& file, uint32_t pipe_id, const char* image, uint32_t magic);
  void dump_packets(uint32_t pipe_id, bool fifo, const std::vector<uint32_t>& lengths);

  DumpContext& context_;
  std::map<InodeKey, Seen> pipes_;
};

}  // namespace migrate
