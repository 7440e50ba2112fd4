// By what MPI passes messages.
#pragma once

#include <string>
#include <vector>

namespace notellm {

// Of Open MPI: the component that was chosen for messages (pml: ob1, ucx, cm), and those that ob1 has below it (btl:
// vader, tcp, …). Empty where it does not tell.
struct MpiComponents {
  std::string pml;
  std::vector<std::string> btls;
};
MpiComponents mpi_components();

// "shared memory (ob1, vader)", "TCP (ob1, tcp)"; "unknown (…)" where the components leave it open.
std::string transport_of(const MpiComponents& components, bool same_host);

}  // namespace notellm
