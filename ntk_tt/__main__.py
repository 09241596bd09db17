from ntk_tt.cli.entry import main

main()
